//! Every limit of the service, in one place. Tests hold each at its edge.
//!
//! The engine's own limits are in `hearth_engine::limits`.

use std::time::Duration;

/// Most connections open at once. For one more, the longest idle is asked to leave, or it is closed.
pub const CONNECTIONS_MAX: usize = 256;
/// Most connections that one app may have open at once. For one more, its longest idle is asked to
/// leave, or it is closed.
pub const APP_CONNECTIONS_MAX: usize = 64;
/// Most app sockets at once.
pub const APP_SOCKETS_MAX: usize = 64;
/// Connections accepted on app sockets that wait to be admitted; more wait in the system's queue.
pub const ARRIVALS_WAITING_MAX: usize = 16;
/// How long a new connection may take to send its first HTTP/2 frame.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long an idle connection that is asked to leave may take, before it is closed.
pub const LEAVE_MAX: Duration = Duration::from_secs(1);
/// How long a new connection waits for the place of one that was asked to leave.
pub const PLACE_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long a refused connection may take to be told so.
pub const REFUSAL_MAX: Duration = Duration::from_millis(100);
/// Most streams open at once on a connection.
pub const STREAMS_MAX: u32 = 32;
/// Largest message that is received, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest header list that is received, in bytes.
pub const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// An idle connection is pinged after this long.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// A connection that answers no ping for this long is closed.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most streams that the peer may reset before they were accepted.
pub const PENDING_RESETS_MAX: usize = 20;
/// Most streams that the peer may provoke us to reset.
pub const LOCAL_RESETS_MAX: usize = 128;
/// Frames that a peer may send at once beyond those that the daemon's answers earn it.
pub const FRAMES_BURST: u32 = 2_000;
/// Frames that a peer earns in a second without an answer.
pub const FRAMES_PER_SECOND: u32 = 200;
/// Frames that an answer's head or end earns: a request, its body, windows, a ping, a cancel.
pub const FRAMES_PER_ANSWER: u32 = 8;
/// Frames that a piece of an answer earns: windows of stream and connection, pings.
pub const FRAMES_PER_DATA: u32 = 4;
/// Bytes from which a piece of an answer earns frames: tiny windows make tiny pieces.
pub const DATA_BYTES_EARNING: usize = 16;
/// Bytes from which a piece of a request costs nothing.
pub const DATA_BYTES_SMALL: usize = 256;
/// What a SETTINGS frame costs, in frames.
pub const SETTINGS_COST: u32 = 20;
/// Most pieces of a header block after its first.
pub const CONTINUATIONS_MAX: u32 = 8;
/// Most streams of a connection that are open or about to be refused.
pub const STREAMS_TRACKED_MAX: usize = 4 * STREAMS_MAX as usize;
/// Most bytes of a connection's requests that are not complete, all together.
pub const REQUEST_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Bytes of replies buffered for a stream that its reader does not take.
pub const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Models that may be warm at once unless it is set otherwise.
pub const WARM_MODELS_MAX: usize = 3;
/// How long a load waits for the replies of the model whose place it takes.
pub const LOAD_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often it looks meanwhile whether it is still wanted.
pub const LOAD_WAIT_LOOK: Duration = Duration::from_millis(100);
/// Events of a generation that wait for its reader; the engine pauses the sequence beyond that.
pub const EVENTS_WAITING_MAX: usize = 256;
/// Tokens that the reader of a full stream has to take within the engine's `READER_STALL_MAX`, or it
/// loses the stream.
pub const READER_TOKENS_MIN: u64 = 64;
/// How long live streams may go on after the daemon was told to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(15);
/// How long connections may take to deliver what is left after the drain.
pub const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Most messages of a conversation.
pub const CHAT_MESSAGES_MAX: usize = 4096;
/// Largest text to tokenize or count, in bytes.
pub const TOKENIZE_BYTES_MAX: usize = 1 << 20;
/// Most tokens to turn into text.
pub const DETOKENIZE_IDS_MAX: usize = 1 << 18;
/// Tokens that a request which does not say may generate: a reply that loops must end.
pub const MAX_TOKENS_DEFAULT: u32 = 2048;
/// Most extra end tokens of a request.
pub const STOP_TOKENS_MAX: usize = 16;
/// Longest deadline and keep-alive of a request; the longest deadline gRPC can say is shorter.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Shortest interval between two messages of `WatchStatus`.
pub const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longest interval between two messages of `WatchStatus`.
pub const WATCH_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Imports at once.
pub const IMPORTS_MAX: usize = 2;
/// Longest model name, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 100;
/// Largest manifest of a stored model, in bytes: every file of the largest model has a line.
pub const MANIFEST_BYTES_MAX: u64 = 512 << 10;
/// A pull that was not finished is kept this long, to be gone on with.
pub const PULL_KEPT_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Longest words about where a model was fetched from, and of its licence, in bytes.
pub const ORIGIN_TEXT_BYTES_MAX: usize = 512;
/// Most models in the store.
pub const MODELS_MAX: usize = 4096;
/// Longest name of an app, in bytes.
pub const APP_NAME_BYTES_MAX: usize = 64;
/// A model stays warm for so long without requests, unless something else is asked for.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30 * 60);
/// Longest time that a load may ask for: a year. A pin has no end.
pub const KEEP_ALIVE_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Most requests that wait for an idle daemon or for mains power,
pub const DEFERRED_MAX: usize = 256;
/// and most of one app.
pub const DEFERRED_APP_MAX: usize = 32;
/// When a caller may try again whose background request was refused to save power.
pub const POWER_RETRY_DELAY: Duration = Duration::from_secs(60);
/// When a caller may try again whom short memory kept from the model.
pub const MEMORY_RETRY_DELAY: Duration = Duration::from_secs(10);
/// When a refused caller may try again, if nothing better is known.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Least time between two versions of the metrics file, unless the configuration says otherwise.
pub const METRICS_INTERVAL: Duration = Duration::from_secs(10);
/// Most connections open at once on the metrics socket; more are closed at once.
pub const METRICS_CONNECTIONS_MAX: usize = 8;
/// A connection to the metrics socket is closed after this long.
pub const METRICS_CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes buffered of a request for metrics; its header has to fit.
pub const METRICS_REQUEST_BYTES_MAX: usize = 8 << 10;
/// Signals of the governor's sources that wait for it; sources wait beyond that.
pub const SIGNALS_WAITING_MAX: usize = 64;
/// How long a system service may take to answer a call.
pub const BUS_CALL_MAX: Duration = Duration::from_secs(5);
/// How often a system service that has just come up is asked, before it counts as missing.
pub const BUS_TRIES_MAX: u32 = 6;
/// First wait before a lost system bus is opened again; it doubles with each try,
pub const BUS_RETRY_MIN: Duration = Duration::from_secs(1);
/// up to this.
pub const BUS_RETRY_MAX: Duration = Duration::from_secs(300);
/// How long the daemon delays the machine's sleep at most.
pub const SLEEP_DELAY_MAX: Duration = Duration::from_secs(4);
/// Largest block that is taken from the C library's heaps, and most free memory that each of them keeps,
/// in bytes. An `int`, as that library wants it.
pub const HEAP_KEPT_BYTES_MAX: i32 = 1 << 20;
/// Most power supplies that are looked at.
pub const POWER_SUPPLIES_MAX: usize = 32;
/// Most thermal zones that are looked at.
pub const THERMAL_ZONES_MAX: usize = 64;
/// Most trip points of a thermal zone that are looked at.
pub const TRIP_POINTS_MAX: usize = 16;
/// How long a person's choice of power waits for the plan that follows from it.
pub const PLAN_WAIT_MAX: Duration = Duration::from_secs(1);
/// Signs of life in a period of the service manager's watchdog.
pub const WATCHDOG_PINGS: u32 = 2;
/// Watchdog periods that a turn of the engine's thread may take, a rebuild of the GPU's state
/// included, before it counts as hung: 2 minutes with the unit's 30 s.
pub const WATCHDOG_TURN_PERIODS: u32 = 4;
/// Watchdog periods that opening the GPU, or a load without progress, may take: 10 minutes with the
/// unit's 30 s.
pub const WATCHDOG_LOAD_PERIODS: u32 = 20;
/// Memory of one rendering of a chat template beyond what the renderer has, in bytes.
pub const RENDER_HEAP_BYTES_MAX: usize = 256 << 20;
/// CPU time of one rendering of a chat template, in seconds. Others wait behind it; the longest
/// conversations take a tenth of it.
pub const RENDER_CPU_SECONDS_MAX: u64 = 1;
/// How long one rendering of a chat template may take, whatever else the machine does,
pub const RENDER_TIME_MAX: Duration = Duration::from_secs(10);
/// and how much later the renderer that says so counts as gone.
pub const RENDER_ANSWER_DELAY_MAX: Duration = Duration::from_secs(5);
/// Most conversations that wait to be rendered.
pub const RENDERS_WAITING_MAX: usize = 64;
/// Largest frame to or from a renderer, in bytes: the largest request or prompt, every byte escaped,
/// and a vocabulary's special tokens.
pub const RENDER_FRAME_BYTES_MAX: usize = 64 << 20;
