//! Sizes (`512M`, `1.5G`) in bytes and durations (`90`, `1m30s`) as users type them.

use std::time::Duration;

/// Why a text is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a size.
    #[error("`{0}` is not a size like 512M or 2G (powers of 1024)")]
    Size(String),
    /// Not a duration.
    #[error("`{0}` is not a duration like 90, 5m or 1h30m")]
    Duration(String),
}

/// Reads a size with an optional suffix K, M, G or T (powers of 1024; `MiB` and `MB` mean the same) into bytes.
///
/// # Errors
/// [`SizeError::Size`] if it is no size or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let bad = || SizeError::Size(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let factor = 1u64 << shift;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(bad);
    }
    let bytes = number.parse::<f64>().map_err(|_| bad())? * factor as f64;
    if bytes.is_finite() && bytes < 9e18 { Ok(bytes as u64) } else { Err(bad()) }
}

/// Writes bytes with one decimal and a binary unit: `1.5 GiB`.
pub fn format_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or("B");
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Reads seconds (`90`, `0.5`) or a combination of `h`, `m`, `s` and `ms` (`1h30m`).
///
/// # Errors
/// [`SizeError::Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, SizeError> {
    let bad = || SizeError::Duration(text.to_owned());
    let seconds = |number: &str, unit: f64| -> Result<f64, SizeError> {
        let good = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if good { number.parse::<f64>().map(|n| n * unit).map_err(|_| bad()) } else { Err(bad()) }
    };
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (unit, length) = match tail.as_bytes() {
            [] if rest.len() == text.len() => (1.0, 0),
            [b'm', b's', ..] => (0.001, 2),
            [b'h', ..] => (3600.0, 1),
            [b'm', ..] => (60.0, 1),
            [b's', ..] => (1.0, 1),
            _ => return Err(bad()),
        };
        total += seconds(number, unit)?;
        rest = &tail[length..];
    }
    if text.is_empty() || total > 1e9 { Err(bad()) } else { Ok(Duration::from_secs_f64(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("1K", 1024), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("1MB", 1 << 20)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1X", "1.2.3", "99999999999T", "1 G", "1kbb", "1ib"] {
            assert!(parse_size(text).is_err(), "{text} was accepted");
        }
        assert_eq!(format_size(3 << 29), "1.5 GiB");
    }

    #[test]
    fn reads_durations() {
        for (text, ms) in [("90", 90_000), ("0.5", 500), ("1h30m", 5_400_000), ("250ms", 250), ("1m5s", 65_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "x", "1x", "-1", "1m5", "s", "1e9", "inf"] {
            assert!(parse_duration(text).is_err(), "{text} was accepted");
        }
    }
}
