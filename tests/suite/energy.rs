//! Energy is told where something tells it: by request, by app and in all, and marked as what it is.

use hearth_proto::v1;
use hearth_test_support::{Daemon, Setup, text_of};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_estimated_adds_up_and_says_so() {
    let (daemon, mut clients) = Daemon::ready(Setup::tiny().set("gpu_watts", 10)).await;
    // A machine that measures may be one's own: then what it measures is told instead.
    let before = clients.status().await.counters.unwrap().energy.unwrap();
    let mut by_request = 0.0;
    for prompt in ["one", "another"] {
        let stream = clients.endless(prompt, 60).await;
        let text = text_of(stream, |reply: v1::GenerateResponse| reply.event).await;
        let energy = text.unwrap().end.unwrap().energy.unwrap();
        assert!(energy.joules > 0.0);
        assert_eq!(energy.source, before.source);
        by_request += energy.joules;
    }
    let status = clients.status().await;
    let in_all = status.counters.unwrap().energy.unwrap().joules;
    let by_app: f64 = status
        .apps
        .iter()
        .filter_map(|a| a.energy)
        .map(|e| e.joules)
        .sum();
    assert!((by_app - in_all).abs() < 1e-3, "{by_app} {in_all}");
    // A reply tells what is still to be counted by the power measured last.
    assert!(
        (by_request - in_all).abs() < 0.2 * by_request,
        "{by_request} {in_all}"
    );
    if before.source() == v1::EnergySource::Estimated {
        let time: f64 = status
            .apps
            .iter()
            .filter_map(|app| std::time::Duration::try_from(app.gpu_time?).ok())
            .map(|time| time.as_secs_f64())
            .sum();
        assert!(in_all <= 10.0 * time * 1.001, "{in_all} J in {time} s");
        assert!(in_all >= 8.0 * time, "{in_all} J in {time} s");
    }
    daemon.stop().await;
}
