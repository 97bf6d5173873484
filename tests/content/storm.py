"""Looks at every file below a directory: stat, open, the first byte. Prints how many."""

import os
import sys

seen = 0
for where, directories, files in os.walk(sys.argv[1]):
    for name in files:
        path = os.path.join(where, name)
        if os.path.islink(path):
            continue
        os.stat(path)
        with open(path, "rb") as file:
            file.read(1)
        seen += 1
print(seen)
