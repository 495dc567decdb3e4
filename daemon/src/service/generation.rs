//! One generation: wait for the model if need be, submit, and turn the engine's events into a
//! stream. Dropping the stream closes the channel, at which the engine stops within one step.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hearth_engine::{Class, Event, GenerateRequest};
use hearth_proto::v1::GenerationEvent;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::deferral::{self, StartWhen};
use super::options::Settings;
use super::prompt::{self, Ask};
use super::sink::{self, Events};
use super::{Replies, blocking};
use crate::governor::PowerLevel;
use crate::lifecycle::State;
use crate::state::{Availability, Shared, Warm};
use crate::status;
use crate::warmth::InFlight;
use crate::wire::{self, Account};

/// A request to generate, checked as far as is possible without a model.
pub(super) struct Job {
    pub(super) model: String,
    pub(super) ask: Ask,
    pub(super) settings: Settings,
}

/// Starts a generation. With a warm model, whatever is wrong with the request is the error of this
/// call; else the stream says so after the model is there.
///
/// # Errors
/// The contract's, in `inference.proto`.
pub(super) async fn start(
    shared: Arc<Shared>,
    job: Job,
) -> Result<Replies<GenerationEvent>, Status> {
    prompt::check(&job.ask)?;
    if job.settings.start_when != StartWhen::Now {
        let (replies, stream) = mpsc::channel(16);
        tokio::spawn(wait_and_submit(shared, job, replies, None));
        return Ok(Box::pin(ReceiverStream::new(stream)));
    }
    let mut in_flight = InFlight::new(&shared);
    match shared.available(&job.model, Some(&mut in_flight))? {
        Availability::Warm(warm) => Ok(Box::pin(submit(shared, warm, job, None, in_flight).await?)),
        Availability::Loading => {
            let (replies, stream) = mpsc::channel(16);
            tokio::spawn(wait_and_submit(shared, job, replies, Some(in_flight)));
            Ok(Box::pin(ReceiverStream::new(stream)))
        }
    }
}

/// Waits for the request's time if that has not come (`in_flight` is `None` then), and for the model;
/// says meanwhile how far that is, then hands on the generation's events.
async fn wait_and_submit(
    shared: Arc<Shared>,
    job: Job,
    replies: mpsc::Sender<Result<GenerationEvent, Status>>,
    in_flight: Option<InFlight>,
) {
    let outcome = tokio::select! {
        outcome = wait_for_start(&shared, &job, &replies, in_flight) => outcome,
        () = replies.closed() => return,
    };
    let started = match outcome {
        Ok((warm, waited, in_flight)) => {
            submit(Arc::clone(&shared), warm, job, waited, in_flight).await
        }
        Err(status) => Err(status),
    };
    let mut events = match started {
        Ok(events) => events,
        Err(status) => {
            let _ = replies.send(Err(shared.refuse(status))).await;
            return;
        }
    };
    loop {
        let event = tokio::select! {
            event = std::future::poll_fn(|cx| Pin::new(&mut events).poll_next(cx)) => event,
            () = replies.closed() => return,
        };
        let Some(event) = event else { return };
        if replies.send(event).await.is_err() {
            return;
        }
    }
}

async fn wait_for_start(
    shared: &Arc<Shared>,
    job: &Job,
    replies: &mpsc::Sender<Result<GenerationEvent, Status>>,
    in_flight: Option<InFlight>,
) -> Result<(Arc<Warm>, Option<Duration>, InFlight), Status> {
    let mut in_flight = match in_flight {
        Some(in_flight) => in_flight,
        None => {
            let deadline = job.settings.request.deadline;
            let request = &job.settings.request;
            let who = (&request.caller, request.class);
            deferral::wait(shared, who, job.settings.start_when, deadline).await?
        }
    };
    let (warm, waited) = wait_for_model(shared, job, &mut in_flight, replies).await?;
    Ok((warm, waited, in_flight))
}

/// Waits for a model; bounded by the load itself and by the request's deadline.
async fn wait_for_model(
    shared: &Shared,
    job: &Job,
    in_flight: &mut InFlight,
    replies: &mpsc::Sender<Result<GenerationEvent, Status>>,
) -> Result<(Arc<Warm>, Option<Duration>), Status> {
    let begun = Instant::now();
    let mut life = shared.lifecycle.watch();
    let mut activity = shared.activity.subscribe();
    let mut told = -1.0;
    let mut waited = false;
    loop {
        let phase = life.borrow_and_update().clone();
        if let Availability::Warm(warm) = shared.available(&job.model, Some(in_flight))? {
            return Ok((warm, waited.then(|| begun.elapsed())));
        }
        waited = true;
        let fraction = match (phase.state, phase.loading) {
            (State::Loading, Some(loading)) => loading.fraction(),
            _ => 0.0,
        };
        // One event for each per cent is enough.
        if fraction - told >= 0.01 {
            told = fraction;
            let _ = replies.try_send(Ok(wire::loading_event(fraction)));
        }
        // What sleeps may change without a change of the daemon's life.
        let changed = async {
            tokio::select! {
                changed = life.changed() => changed,
                changed = activity.changed() => changed,
            }
        };
        let changed = match job.settings.request.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), changed)
                .await
                .map_err(|_| status::deadline_exceeded())?,
            None => changed.await,
        };
        changed.map_err(|_| status::draining())?;
    }
}

async fn submit(
    shared: Arc<Shared>,
    warm: Arc<Warm>,
    job: Job,
    load_time: Option<Duration>,
    in_flight: InFlight,
) -> Result<Generation, Status> {
    let Job { ask, settings, .. } = job;
    let Settings {
        mut request,
        allow_truncation,
        keep_alive,
        ..
    } = settings;
    let field = ask.field();
    if request
        .deadline
        .is_some_and(|deadline| deadline <= Instant::now())
    {
        return Err(status::deadline_exceeded());
    }
    let plan = shared.governor.plan();
    if request.class == Class::Background && plan.power == Some(PowerLevel::Critical) {
        return Err(status::deferred_by_power());
    }
    let engine = Arc::clone(shared.engine().ok_or_else(status::loading)?);
    let model = Arc::clone(&warm.model);
    let context_len = engine.context_len(&model);
    let max_tokens = request.max_tokens;
    // The assistant's turn is a text of its own.
    request.new_text = matches!(ask, Ask::Chat(..));
    let (_asker, renders) = prompt::Renders::of(&shared);
    let (prompt, truncation) = blocking(move || {
        let truncates = allow_truncation.then_some(max_tokens);
        prompt::fitting_tokens(&renders, &model, &ask, context_len, truncates)
    })
    .await?;
    check_stop_tokens(&request, warm.model.config.vocab_size)?;
    request.prompt = prompt;
    let account = Account {
        model: warm.name.clone(),
        seed: request.sampling.seed,
        load_time,
        truncation,
        meter: shared.meter.clone(),
    };
    if keep_alive.is_some() {
        warm.stay.change(|wish| wish.keep_alive = keep_alive);
    }
    let (sink, events) = sink::channel(Some(in_flight));
    engine
        .submit_to(&warm.model, request, Box::new(sink))
        .map_err(|error| status::of_submit(&error, field))?;
    shared.activity.send_replace(());
    Ok(Generation {
        events,
        account,
        over: false,
    })
}

fn check_stop_tokens(request: &GenerateRequest, vocab_size: u32) -> Result<(), Status> {
    match request.stop_tokens.iter().position(|id| *id >= vocab_size) {
        Some(i) => Err(status::bad_field(
            &format!("options.stop_token_ids[{i}]"),
            format!("is not in the vocabulary of {vocab_size}"),
        )),
        None => Ok(()),
    }
}

/// The caller's end of a generation's channel.
struct Generation {
    events: Events,
    account: Account,
    over: bool,
}

impl Stream for Generation {
    type Item = Result<GenerationEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let reply = match ready!(self.events.poll_next(cx)) {
            Some(event) => {
                self.over = matches!(event, Event::End(_));
                wire::event(event, &self.account)
            }
            None if self.events.stalled() => {
                self.over = true;
                Err(status::reader_stalled())
            }
            None => {
                // To a reader with room the engine always says how a sequence ended.
                self.over = true;
                tracing::error!("a sequence's events ended without an end");
                Err(status::bug())
            }
        };
        Poll::Ready(Some(reply))
    }
}
