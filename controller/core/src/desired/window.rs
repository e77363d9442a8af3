//! Windows in which tasks or instances may be replaced.

use super::Problem;
use jiff::{Timestamp, civil::Time, civil::Weekday, tz::TimeZone};
use tasuki_api::desired::{Day, Window};

/// The windows of one monitor. None at all means always open.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    open: Vec<Open>,
    /// At least one window could not be read; it never opens.
    broken: bool,
    text: String,
}

#[derive(Clone, Debug)]
struct Open {
    days: Vec<Weekday>,
    from: Time,
    to: Time,
    zone: TimeZone,
}

impl Windows {
    pub(super) fn compile(monitor: &str, windows: &[Window], problems: &mut Vec<Problem>) -> Self {
        let mut compiled = Self::default();
        for (index, window) in windows.iter().enumerate() {
            let path = format!("spec.rollout.windows[{index}]");
            let mut refuse = |message: String| problems.push(Problem::new("RuntimeMonitor", monitor, &path, message));
            let zone = match TimeZone::get(&window.timezone) {
                Ok(zone) => Some(zone),
                Err(_) if window.timezone == "UTC" => Some(TimeZone::UTC),
                Err(_) => {
                    refuse(format!("unknown time zone `{}`; write an IANA name such as Asia/Tokyo", window.timezone));
                    None
                }
            };
            let time = |text: &str| Time::strptime("%H:%M", text).ok();
            let (from, to) = (time(&window.from), time(&window.to));
            if from.is_none() || to.is_none() {
                refuse(format!("`{}` to `{}` is not a time of day; write HH:MM", window.from, window.to));
            }
            if !compiled.text.is_empty() {
                compiled.text.push_str("; ");
            }
            let days: Vec<_> = window.days.iter().map(|d| format!("{d:?}")).collect();
            compiled.text.push_str(&format!("{} {}-{} {}", days.join(","), window.from, window.to, window.timezone));
            match (zone, from, to) {
                (Some(zone), Some(from), Some(to)) => {
                    let days = window.days.iter().map(|d| weekday(*d)).collect();
                    compiled.open.push(Open { days, from, to, zone });
                }
                _ => compiled.broken = true,
            }
        }
        compiled
    }

    /// Whether something may be replaced now.
    pub fn are_open(&self, now: Timestamp) -> bool {
        if self.open.is_empty() {
            return !self.broken;
        }
        self.open.iter().any(|window| {
            let local = now.to_zoned(window.zone.clone());
            let (day, time) = (local.weekday(), local.time());
            if window.from <= window.to {
                window.days.contains(&day) && time >= window.from && time < window.to
            } else {
                // Over midnight: the morning belongs to the day before.
                (window.days.contains(&day) && time >= window.from)
                    || (window.days.contains(&day.previous()) && time < window.to)
            }
        })
    }

    /// For people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: Vec<Day>, from: &str, to: &str) -> Windows {
        let window = Window { days, from: from.into(), to: to.into(), timezone: "UTC".into() };
        let mut problems = vec![];
        let windows = Windows::compile("m", &[window], &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        windows
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_began_on() {
        // 2026-11-23 is a Monday.
        let at = |t: &str| t.parse::<Timestamp>().unwrap();
        let night = window(vec![Day::Mon], "22:00", "02:00");
        assert!(night.are_open(at("2026-11-23T23:00:00Z")));
        assert!(night.are_open(at("2026-11-24T01:59:00Z")));
        assert!(!night.are_open(at("2026-11-24T02:00:00Z")));
        assert!(!night.are_open(at("2026-11-23T01:00:00Z")), "the night before is Sunday's");
        let day = window(vec![Day::Mon], "09:00", "16:00");
        assert!(day.are_open(at("2026-11-23T09:00:00Z")) && !day.are_open(at("2026-11-23T16:00:00Z")));
    }

    #[test]
    fn no_window_is_always_open_and_a_broken_one_never() {
        assert!(Windows::default().are_open(Timestamp::UNIX_EPOCH));
        let mut problems = vec![];
        let broken =
            Window { days: vec![Day::Mon], from: "9".into(), to: "25:00".into(), timezone: "Mars/Base".into() };
        let windows = Windows::compile("m", &[broken], &mut problems);
        assert!(!windows.are_open(Timestamp::UNIX_EPOCH));
        assert_eq!(problems.len(), 2);
    }
}
