//! What `Show` tells of a model, warm or stored.

use hearth_engine::model::ModelConfig;
use hearth_engine::{AdapterKind, KvNeed};
use hearth_proto::v1;

use crate::governor;
use crate::state::{Shared, Warm};
use crate::store::{BadModel, Manifest, ModelFacts, StoreError, StoredFile};
use crate::wire;

/// Describes the warm model.
pub(super) fn show_warm(warm: &Warm) -> v1::ShowResponse {
    let template = warm.model.chat_template.as_ref();
    let facts = ModelFacts::new(&warm.model.config, template.is_some());
    let model = &warm.model;
    v1::ShowResponse {
        chat_template: template.map(|template| template.source().to_owned()),
        weights_bytes: model.weights_bytes,
        files: files_of(warm.manifest.as_ref()),
        source: warm
            .manifest
            .as_ref()
            .and_then(|model| model.source.clone()),
        memory: Some(v1::MemoryNeed {
            weights_bytes: model.weights_bytes,
            kv_bytes: model.kv_bytes,
            scratch_bytes: model.scratch_bytes,
            context_len: model.context_len,
            measured: true,
            available_bytes: None,
        }),
        ..show(warm.info(), &facts, warm.path.display().to_string())
    }
}

/// Describes a model of the store.
///
/// # Errors
/// It is not there, or not sound any more.
pub(super) fn show_stored(
    shared: &Shared,
    name: &str,
    state: v1::ModelState,
) -> Result<v1::ShowResponse, StoreError> {
    let model = shared.store.get(name)?;
    let checkpoint = shared.store.open_model(&model)?;
    let template = checkpoint
        .get_str("tokenizer.chat_template")
        .map_err(BadModel::Format)?;
    let files = shared.store.files(&model)?;
    let path = files
        .iter()
        .next()
        .map(|(_, path)| path.display().to_string());
    let info = wire::stored_model(&model, state);
    let shown = show(info, &model.facts, path.unwrap_or_default());
    let config = ModelConfig::of(&checkpoint).map_err(BadModel::Model)?;
    Ok(v1::ShowResponse {
        chat_template: template.map(str::to_owned),
        weights_bytes: model.file_bytes(),
        files: files_of(Some(&model)),
        source: model.source.clone(),
        memory: need(shared, &config, model.file_bytes()),
        ..shown
    })
}

/// What a load would take as things are; `None` until the GPU is open.
fn need(shared: &Shared, model: &ModelConfig, weights_bytes: u64) -> Option<v1::MemoryNeed> {
    let adapter = shared.engine()?.adapter();
    let need = KvNeed::of(adapter, &shared.config.engine, model);
    let allowed = shared.governor.plan().allowance.context_len_max;
    let available_bytes = match adapter.kind {
        AdapterKind::Discrete => None,
        _ => governor::free_bytes(&shared.config.governor),
    };
    Some(v1::MemoryNeed {
        weights_bytes,
        kv_bytes: need.kv_bytes,
        scratch_bytes: 0,
        context_len: need.context_len.min(allowed),
        measured: false,
        available_bytes,
    })
}

fn files_of(model: Option<&Manifest>) -> Vec<v1::ModelFile> {
    let file = |file: &StoredFile| v1::ModelFile {
        name: file.name.clone(),
        sha256: file.sha256.clone(),
        bytes: file.bytes,
    };
    model.map_or_else(Vec::new, |model| model.files.iter().map(file).collect())
}

fn show(info: v1::ModelInfo, facts: &ModelFacts, path: String) -> v1::ShowResponse {
    // Keys and values of a token: one 16-bit number each per layer, head and place in it.
    let kv_bytes_per_token =
        2 * 2 * u64::from(facts.n_layers) * u64::from(facts.n_kv_heads) * u64::from(facts.head_dim);
    v1::ShowResponse {
        model: Some(info),
        chat_template: None,
        n_heads: facts.n_heads,
        n_kv_heads: facts.n_kv_heads,
        head_dim: facts.head_dim,
        ffn_dim: facts.ffn_dim,
        weights_bytes: 0,
        kv_bytes_per_1024_tokens: kv_bytes_per_token.saturating_mul(1024),
        path,
        files: Vec::new(),
        source: None,
        memory: None,
    }
}
