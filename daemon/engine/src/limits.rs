//! Every limit of the engine, in one place. Tests hold each at its edge.

/// Most stop texts of a request.
pub const STOP_TEXTS_MAX: usize = 16;
/// Longest stop text, in bytes.
pub const STOP_TEXT_BYTES_MAX: usize = 256;
/// Most alternatives reported beside a token's log-probability.
pub const LOGPROBS_TOP_MAX: u32 = 20;
/// A reader that takes nothing for this long loses its stream.
pub const READER_STALL_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Longest that a GPU may take for what was submitted to it before it counts as hung,
pub const GPU_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(30);
/// and a software adapter, which the whole machine may keep waiting.
pub const GPU_WAIT_SOFTWARE_MAX: std::time::Duration = std::time::Duration::from_secs(600);
/// How long the driver may take to give back what a lost device held, before the engine goes on without.
pub const BURIAL_MAX: std::time::Duration = std::time::Duration::from_secs(5);
/// Time before a lost device is opened again. The first try is at once: a driver that was reset, as after
/// sleep, mostly answers by then.
pub const RETRY_DELAYS: [std::time::Duration; 4] = [
    std::time::Duration::ZERO,
    std::time::Duration::from_secs(1),
    std::time::Duration::from_secs(4),
    std::time::Duration::from_secs(16),
];
/// Failures within this time make the delays longer.
pub const LOSSES_RECENT: std::time::Duration = std::time::Duration::from_secs(60);
/// Failures within this time count together:
pub const LOSSES_WINDOW: std::time::Duration = std::time::Duration::from_secs(600);
/// so many make steps smaller,
pub const LOSSES_CAREFUL: usize = 3;
/// and so many end the model.
pub const LOSSES_GIVE_UP: usize = 6;
/// Most times that one load is begun because the device is lost in it. Its caller waits, and is told.
pub const LOAD_TRIES_MAX: u32 = 3;
/// Least tokens of a KV cache that is made smaller because memory is short, unless the model's own
/// context is shorter.
pub const KV_TOKENS_MIN: u32 = 2048;
/// How often requests are looked at that wait while the model is away.
pub const REST_POLL: std::time::Duration = std::time::Duration::from_millis(250);
/// Longest that the engine may take to leave the GPU idle.
pub const QUIESCE_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// GGUF: most metadata keys.
pub const GGUF_KEYS_MAX: u64 = 65_536;
/// GGUF: most tensors.
pub const GGUF_TENSORS_MAX: u64 = 65_536;
/// GGUF: most dimensions of a tensor.
pub const GGUF_DIMS_MAX: u32 = 4;
/// GGUF: largest alignment of tensor data, in bytes.
pub const GGUF_ALIGNMENT_MAX: u64 = 1 << 16;
/// GGUF: longest string, in bytes.
pub const GGUF_STRING_BYTES_MAX: u64 = 1 << 20;
/// GGUF: most elements of a metadata array.
pub const GGUF_ARRAY_LEN_MAX: u64 = 4 << 20;
/// GGUF: largest header (everything before the tensor data), in bytes.
pub const GGUF_HEADER_BYTES_MAX: u64 = 64 << 20;

/// Hugging Face's files: largest `config.json` and `generation_config.json`, in bytes,
pub const HUB_CONFIG_BYTES_MAX: u64 = 1 << 20;
/// `tokenizer_config.json`,
pub const HUB_TOKENIZER_CONFIG_BYTES_MAX: u64 = 8 << 20;
/// `tokenizer.json`,
pub const HUB_TOKENIZER_BYTES_MAX: u64 = 64 << 20;
/// and `tokenizer.model`, of which each two bytes may take 32 of memory, twice those of the largest
/// that are published;
pub const HUB_PIECES_BYTES_MAX: u64 = 8 << 20;
/// in `tokenizer.json`, each description of how text is cut and what is put around it,
pub const HUB_PIPELINE_BYTES_MAX: u64 = 256 << 10;
/// and most added tokens.
pub const HUB_ADDED_TOKENS_MAX: usize = 65_536;
/// Longest token, in bytes as its file spells it.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Longest text of all added tokens together, in bytes. Finding them takes some 20 bytes of memory for
/// each.
pub const ADDED_TOKENS_BYTES_MAX: usize = 1 << 20;
/// Most merges of a vocabulary.
pub const MERGES_MAX: usize = 1 << 20;
/// Most pairs of characters for which a SentencePiece-style tokenizer knows whether some token holds
/// them; with more, text is not cut into pieces.
pub const NEIGHBOURS_MAX: usize = 1 << 20;

/// Tokenizer: longest text of one call, in bytes.
pub const TOKENIZER_TEXT_BYTES_MAX: usize = 4 << 20;
/// Tokenizer: longest run without a place to cut (such as one word), in bytes. Merging it takes
/// some 60 bytes of memory for each.
pub const TOKENIZER_PIECE_BYTES_MAX: usize = 1 << 20;

/// Longest chat template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Longest tag of a chat template, texts in quotes not counted, in bytes.
pub const TEMPLATE_TAG_CHARS_MAX: usize = 2048;
/// Instructions a chat template may run, however many messages there are.
pub const TEMPLATE_FUEL_MAX: u64 = 2_000_000;
/// Instructions a chat template may run without a message: one may go over a list, so that they are
/// not for the asking.
pub const TEMPLATE_FUEL_BASE: u64 = 200_000;
/// Instructions a chat template may run for each message besides.
pub const TEMPLATE_FUEL_PER_MESSAGE: u64 = 2_000;
/// Deepest nesting of macros in a chat template.
pub const TEMPLATE_RECURSION_MAX: usize = 64;
/// Most messages of a conversation.
pub const TEMPLATE_MESSAGES_MAX: usize = 4096;
/// Largest rendered prompt, in bytes.
pub const TEMPLATE_OUTPUT_BYTES_MAX: usize = 4 << 20;

/// Model: most layers.
pub const LAYERS_MAX: u32 = 512;
/// Model: widest hidden state or feed-forward layer.
pub const WIDTH_MAX: u32 = 1 << 18;
/// Model: most vocabulary entries.
pub const VOCAB_MAX: u32 = 1 << 20;
/// Model: longest context a file may claim, in tokens.
pub const CONTEXT_MAX: u32 = 1 << 24;
/// Files of one model.
pub const MODEL_FILES_MAX: usize = 512;
/// Safetensors: largest header of a file, in bytes.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 64 << 20;
/// Safetensors: most tensors of a file.
pub const TENSORS_MAX: usize = 65_536;
/// Safetensors: longest name of a tensor, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 1024;
/// Hub: largest `model.safetensors.index.json`, in bytes.
pub const HUB_INDEX_BYTES_MAX: u64 = 32 << 20;
