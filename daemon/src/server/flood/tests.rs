//! The counting of frames, at the edge of each limit.

use std::time::Duration;

use super::frames::CONTINUATION;
use super::*;

const WINDOW_UPDATE: u8 = 0x8;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, len: usize) -> Vec<u8> {
    let size = u32::try_from(len).unwrap().to_be_bytes();
    let mut bytes = vec![size[1], size[2], size[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(std::iter::repeat_n(0xff, len));
    bytes
}

/// A meter that has seen a client's first bytes, and the time at which it has.
fn begun() -> (Meter, Instant) {
    let now = Instant::now();
    let mut meter = Meter::new(now);
    meter.received(PREFACE, now).unwrap();
    assert!(!meter.has_begun(), "the preface is no frame");
    meter
        .received(&frame(SETTINGS, 0, 0, 18), now)
        .expect("the first frame");
    assert!(meter.has_begun());
    meter.credit = f64::from(limits::FRAMES_BURST);
    (meter, now)
}

#[test]
fn pieces_of_any_size_count_the_same() {
    let now = Instant::now();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, 6));
    bytes.extend(frame(HEADERS, 0x4, 1, 30));
    bytes.extend(frame(DATA, 0, 1, 300));
    bytes.extend(frame(DATA, 0, 1, 0));
    bytes.extend(frame(HEADERS, 0x5, 3, 30));
    for size in 1..40 {
        let mut meter = Meter::new(now);
        for piece in bytes.chunks(size) {
            meter.received(piece, now).unwrap();
        }
        assert_eq!((meter.streams(), meter.body_bytes), (2, 300), "{size}");
        let paid = f64::from(limits::FRAMES_BURST) - meter.credit;
        assert!((paid - f64::from(limits::SETTINGS_COST) - 3.0).abs() < 1e-9);
    }
}

#[test]
fn a_burst_is_spent_to_its_last_frame_and_time_brings_more() {
    for (kind, cost, flood) in [
        (PING, 1, Flood::Pings),
        (WINDOW_UPDATE, 1, Flood::Frames),
        (RST_STREAM, 1, Flood::Frames),
        (DATA, 1, Flood::Frames),
        (0x2, 1, Flood::Frames),
        (0x77, 1, Flood::Frames),
        (SETTINGS, limits::SETTINGS_COST, Flood::Frames),
    ] {
        let (mut meter, now) = begun();
        let one = frame(kind, 0, 0, 4);
        for i in 0..limits::FRAMES_BURST / cost {
            assert_eq!(meter.received(&one, now), Ok(()), "kind {kind}, frame {i}");
        }
        assert_eq!(meter.received(&one, now), Err(flood));
        let (mut meter, now) = begun();
        meter.credit = 0.0;
        let later = now + Duration::from_secs(1);
        for _ in 0..limits::FRAMES_PER_SECOND / cost {
            assert_eq!(meter.received(&one, later), Ok(()));
        }
        assert_eq!(meter.received(&one, later), Err(flood));
    }
}

#[test]
fn whatever_answers_a_stream_earns_frames_and_nothing_else_does() {
    let earned = |kind, flags, len| {
        let (mut meter, _) = begun();
        meter.credit = 0.0;
        meter.sent(&frame(kind, flags, 1, len));
        meter.credit
    };
    assert!((earned(HEADERS, 0x4, 20) - f64::from(limits::FRAMES_PER_ANSWER)).abs() < 1e-9);
    let enough = limits::DATA_BYTES_EARNING;
    assert!((earned(DATA, 0, enough) - f64::from(limits::FRAMES_PER_DATA)).abs() < 1e-9);
    for (kind, len) in [
        (DATA, enough - 1),
        (RST_STREAM, 4),
        (PING, 8),
        (SETTINGS, 0),
        (0x7, 30),
    ] {
        assert!(earned(kind, 0, len) == 0.0, "kind {kind}");
    }
    // Requests that are answered may go on for ever.
    let (mut meter, now) = begun();
    for id in 0..20 * limits::FRAMES_BURST {
        let id = 2 * id + 1;
        for (kind, flags, stream, len) in [
            (HEADERS, 0x4, id, 50),
            (DATA, 0, id, 30),
            (DATA, END_STREAM, id, 0),
            (PING, 0, 0, 8),
            (WINDOW_UPDATE, 0, 0, 4),
            (WINDOW_UPDATE, 0, id, 4),
        ] {
            meter
                .received(&frame(kind, flags, stream, len), now)
                .unwrap();
        }
        meter.sent(&frame(HEADERS, 0x5, id, 40));
        assert_eq!(meter.streams(), 0);
    }
}

#[test]
fn a_cancel_takes_back_what_the_answers_head_earned() {
    let (mut meter, now) = begun();
    let spent = |meter: &Meter| f64::from(limits::FRAMES_BURST) - meter.credit;
    meter.received(&frame(HEADERS, 0x5, 1, 10), now).unwrap();
    meter.received(&frame(RST_STREAM, 0, 1, 4), now).unwrap();
    assert!((spent(&meter) - 2.0).abs() < 1e-9, "nothing was earned");
    meter.credit -= 100.0;
    meter.received(&frame(HEADERS, 0x5, 3, 10), now).unwrap();
    meter.sent(&frame(HEADERS, 0x4, 3, 10));
    meter.received(&frame(RST_STREAM, 0, 3, 4), now).unwrap();
    assert!((spent(&meter) - 104.0).abs() < 1e-9);
    // Again and again it comes to an end.
    let cancels = (5..).step_by(2).take_while(|id| {
        let asked = meter.received(&frame(HEADERS, 0x5, *id, 10), now);
        meter.sent(&frame(HEADERS, 0x4, *id, 10));
        asked.is_ok() && meter.received(&frame(RST_STREAM, 0, *id, 4), now).is_ok()
    });
    assert!(cancels.count() <= limits::FRAMES_BURST as usize / 2);
}

#[test]
fn streams_end_from_either_side() {
    let (mut meter, now) = begun();
    for id in [1, 3, 5, 7] {
        meter.received(&frame(HEADERS, 0x5, id, 10), now).unwrap();
    }
    meter.received(&frame(RST_STREAM, 0, 1, 4), now).unwrap();
    assert_eq!(meter.streams(), 3);
    meter.sent(&frame(RST_STREAM, 0, 3, 4));
    meter.sent(&frame(HEADERS, 0x4, 5, 10));
    assert_eq!(meter.streams(), 2);
    meter.sent(&frame(DATA, END_STREAM, 5, 0));
    meter.sent(&frame(HEADERS, 0x5, 7, 10));
    assert_eq!(meter.streams(), 0);
    // A stream that is over does not open again.
    meter.received(&frame(HEADERS, 0x4, 7, 10), now).unwrap();
    assert_eq!(meter.streams(), 0);

    let (mut meter, now) = begun();
    let mut open = |i: usize| {
        let id = u32::try_from(2 * i + 1).unwrap();
        meter.received(&frame(HEADERS, 0x5, id, 10), now)
    };
    for i in 0..limits::STREAMS_TRACKED_MAX {
        assert_eq!(open(i), Ok(()));
    }
    assert_eq!(open(limits::STREAMS_TRACKED_MAX), Err(Flood::Streams));
}

#[test]
fn unfinished_requests_hold_so_many_bytes_together() {
    let piece = 16 << 10;
    let pieces = limits::REQUEST_BYTES_MAX / piece;
    let (mut meter, now) = begun();
    let data = |flags, stream| frame(DATA, flags, stream, piece);
    for stream in [1, 3] {
        meter
            .received(&frame(HEADERS, 0x4, stream, 10), now)
            .unwrap();
    }
    for i in 0..pieces {
        let stream = if i % 2 == 0 { 1 } else { 3 };
        assert_eq!(meter.received(&data(0, stream), now), Ok(()));
    }
    assert_eq!(meter.received(&data(0, 1), now), Err(Flood::Bodies));
    // What is complete, reset or was never opened counts no more.
    let (mut meter, now) = begun();
    for stream in (1..20).step_by(2) {
        let mut bytes = frame(HEADERS, 0x4, stream, 10);
        for _ in 0..pieces / 2 {
            bytes.extend(data(0, stream));
        }
        bytes.extend(match stream % 3 {
            0 => data(END_STREAM, stream),
            1 => frame(HEADERS, 0x5, stream, 10),
            _ => frame(RST_STREAM, 0, stream, 4),
        });
        assert_eq!(meter.received(&bytes, now), Ok(()), "stream {stream}");
        assert_eq!(meter.received(&data(0, 99), now), Ok(()));
        assert_eq!(meter.body_bytes, 0);
    }
}

#[test]
fn a_header_block_has_few_pieces() {
    let (mut meter, now) = begun();
    for stream in [1, 3] {
        meter.received(&frame(HEADERS, 0, stream, 10), now).unwrap();
        for _ in 0..limits::CONTINUATIONS_MAX {
            let one = frame(CONTINUATION, 0, stream, 10);
            assert_eq!(meter.received(&one, now), Ok(()));
        }
    }
    let one = frame(CONTINUATION, 0, 3, 0);
    assert_eq!(meter.received(&one, now), Err(Flood::Continuations));
}

#[test]
fn ours_may_follow_only_at_a_frames_end() {
    let (mut meter, _) = begun();
    assert!(meter.may_interject());
    let bytes = frame(DATA, 0, 1, 20);
    meter.sent(&bytes[..5]);
    assert!(!meter.may_interject());
    meter.sent(&bytes[5..28]);
    assert!(!meter.may_interject());
    meter.sent(&bytes[28..]);
    assert!(meter.may_interject());
}
