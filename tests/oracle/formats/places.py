"""Says where the makers find and put things.

One job: the folder of fixtures, and the trained tiny models, which are kept in the
cache so that all makers write from the same weights.
"""

import pickle
import shutil
from pathlib import Path

import torch

import base_models

FIXTURES = Path(__file__).with_name("fixtures")
CACHE = Path(__file__).parents[3] / ".cache/oracle/bases"


def base(name):
    """Returns a trained tiny model in float32, its tokenizer, and its pieces' scores if any."""
    path = CACHE / f"{name}.pickle"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        model, tokenizer, scores = base_models.trained(name)
        path.write_bytes(pickle.dumps((model.config, model.state_dict(), scores)))
    config, state, scores = pickle.loads(path.read_bytes())
    model = base_models.BASES[name].model(config)
    model.load_state_dict(state)
    tokenizer = base_models.BASES[name].tokenizer()
    return model.to(torch.float32).eval(), tokenizer[0] if isinstance(tokenizer, tuple) else tokenizer, scores


def fresh(name):
    """Returns an empty folder among the fixtures."""
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
