//! Work that several threads do and one takes: pieces of a matrix, unpacked while others are uploaded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// Has pieces `0..count` made by up to `threads` threads, and takes each on the calling one, in whatever
/// order they come. At most two pieces a thread are there at a time.
///
/// # Errors
/// The first that comes, of making or of taking; nothing is taken after it.
pub(super) fn spread<T: Send, E: Send>(
    count: u64,
    threads: usize,
    make: impl Fn(u64) -> Result<T, E> + Sync,
    mut take: impl FnMut(u64, T) -> Result<(), E>,
) -> Result<(), E> {
    let threads = threads.min(usize::try_from(count).unwrap_or(usize::MAX));
    if threads <= 1 {
        return (0..count).try_for_each(|piece| take(piece, make(piece)?));
    }
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (made, pieces) = mpsc::sync_channel(1);
        for _ in 0..threads {
            let (made, next, make) = (made.clone(), &next, &make);
            scope.spawn(move || {
                loop {
                    let piece = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody takes more after an error.
                    if piece >= count || made.send((piece, make(piece))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(made);
        pieces
            .into_iter()
            .try_for_each(|(piece, made)| take(piece, made?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_made_and_taken_once() {
        for threads in [0, 1, 2, 3, 8] {
            for count in [0, 1, 2, 7, 100] {
                let mut taken = Vec::new();
                let done: Result<(), ()> = spread(
                    count,
                    threads,
                    |piece| Ok(piece * piece),
                    |piece, square| {
                        assert_eq!(square, piece * piece);
                        taken.push(piece);
                        Ok(())
                    },
                );
                assert_eq!(done, Ok(()));
                taken.sort_unstable();
                assert_eq!(taken, (0..count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn an_error_ends_it_wherever_it_comes_from() {
        for threads in [1, 4] {
            let bad = |piece| if piece == 5 { Err("made") } else { Ok(piece) };
            assert_eq!(spread(1000, threads, bad, |_, _| Ok(())), Err("made"));
            let mut taken = 0;
            let full = |_, _| {
                taken += 1;
                if taken == 3 { Err("taken") } else { Ok(()) }
            };
            assert_eq!(spread(1000, threads, Ok, full), Err("taken"));
            assert_eq!(taken, 3);
        }
    }

    #[test]
    fn pieces_do_not_pile_up() {
        let (threads, held) = (4, AtomicU64::new(0));
        let make = |piece| {
            held.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ()>(piece)
        };
        let slow = |_, _| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            let held = held.fetch_sub(1, Ordering::SeqCst);
            assert!(held <= 2 + threads, "{held} at once");
            Ok(())
        };
        spread(200, 4, make, slow).unwrap();
    }
}
