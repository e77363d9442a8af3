//! Medians and percentiles.

/// The value below which `percent` of all lie; 0 of nothing.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_of_many() {
        assert_eq!(percentile(&[], 99), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        let many: Vec<f64> = (0..200).map(f64::from).collect();
        assert_eq!((median(&many), percentile(&many, 99)), (100.0, 198.0));
    }
}
