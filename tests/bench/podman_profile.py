"""Prints podman's default seccomp profile as the linux.seccomp of a config.json, as podman makes it for root on x86-64."""
import json
import sys

CAPS = {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
        "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}


def applies(rule):
    wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
    return (
        set(wanted.get("caps", [])) <= CAPS
        and not set(unwanted.get("caps", [])) & CAPS
        and ("amd64" in wanted.get("arches", ["amd64"]))
        and "amd64" not in unwanted.get("arches", [])
    )


profile = json.load(open(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/containers/seccomp.json"))
keys = ("names", "action", "errnoRet", "args")
rules = [{k: r[k] for k in keys if r.get(k)} for r in profile["syscalls"] if applies(r)]
json.dump({"defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
           "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules}, sys.stdout)
