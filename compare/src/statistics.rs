//! The few numbers that a noisy machine can give.

/// Median, extremes and spread of one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of values.
    pub count: usize,
    /// Median.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Median absolute deviation from the median.
    pub deviation: f64,
}

/// Summarises values; `None` without any.
pub fn summary(values: &[f64]) -> Option<Summary> {
    let median = median(values)?;
    let distances: Vec<f64> = values.iter().map(|v| (v - median).abs()).collect();
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    Some(Summary { count: values.len(), median, min, deviation: self::median(&distances)? })
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_deviation() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let summary = summary(&[1.0, 2.0, 3.0, 4.0, 100.0]).unwrap();
        assert_eq!((summary.median, summary.min, summary.deviation), (3.0, 1.0, 1.0));
    }
}
