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

/// A ratio with the interval that holds the true median of the ratio in 95 of 100 measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median of the ratios of the rounds.
    pub median: f64,
    /// Ends of the interval; `None` below six rounds, which cannot say anything at this level.
    pub interval: Option<(f64, f64)>,
}

/// The ratio of two series round by round, so that what slows a whole round down does not count. The interval is made of
/// order statistics by the sign test (Conover, Practical Nonparametric Statistics, 3.2): it assumes no distribution.
pub fn paired_ratio(values: &[f64], base: &[f64]) -> Option<Ratio> {
    let mut ratios: Vec<f64> = values.iter().zip(base).map(|(value, base)| value / base).collect();
    ratios.sort_by(f64::total_cmp);
    let median = median(&ratios)?;
    let outside = outside(ratios.len());
    let interval = (outside > 0).then(|| (ratios[outside - 1], ratios[ratios.len() - outside]));
    Some(Ratio { median, interval })
}

/// The largest k for which fewer than k of `count` fair coins show heads in at most 2.5 % of all throws; 0 when there is none.
fn outside(count: usize) -> usize {
    let mut term = 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX)); // C(count, 0) / 2^count
    let mut sum = term;
    let mut k = 0;
    while sum <= 0.025 && k < count {
        k += 1;
        term *= (count - k + 1) as f64 / k as f64;
        sum += term;
    }
    k
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

    #[test]
    fn the_interval_is_that_of_the_tables() {
        // Ranks of the lower end at 95 %: Conover, table A3 (binomial, p = 1/2).
        let ranks = [(5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (100, 40)];
        assert_eq!(ranks.map(|(count, _)| outside(count)), ranks.map(|(_, rank)| rank));
    }

    #[test]
    fn a_ratio_is_that_of_the_rounds() {
        let base = [1.0, 10.0, 100.0, 1000.0, 1.0, 10.0];
        let values = base.map(|v| v * 1.5);
        assert_eq!(paired_ratio(&values, &base), Some(Ratio { median: 1.5, interval: Some((1.5, 1.5)) }));
        assert_eq!(paired_ratio(&values[..5], &base[..5]).unwrap().interval, None);
        assert_eq!(paired_ratio(&[], &[]), None);
    }
}
