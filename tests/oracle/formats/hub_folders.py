"""Writes models as folders in Hugging Face's layout, and reads them back.

One job: transformers' own save_pretrained, and after it the few ways in which folders
of other times differ: where the chat template stands, and how config.json names
rotary scaling and the type of numbers.
"""

import copy
import json

import torch
from transformers.utils import logging
from transformers import AutoModelForCausalLM


def save(folder, model, tokenizer, dtype, shard_bytes=None, template="jinja", old_config=False):
    """Writes the folder. `template`: jinja (a file), string or list (in tokenizer_config.json)."""
    size = {"max_shard_size": shard_bytes} if shard_bytes else {}
    stored = copy.deepcopy(model).to(dtype)
    stored.save_pretrained(folder, **size)
    tokenizer.save_pretrained(folder)
    place_template(folder, tokenizer, template)
    if old_config:
        to_old_config(folder / "config.json")


def place_template(folder, tokenizer, template):
    """Moves the chat template to where older folders have it."""
    if template == "jinja":
        return
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    one = tokenizer.chat_template
    named = [{"name": "tool_use", "template": "{{ raise_exception('no tools') }}"}, {"name": "default", "template": one}]
    config["chat_template"] = named if template == "list" else one
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_old_config(path):
    """Writes rotary scaling and the type of numbers as transformers 4 did."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


logging.disable_progress_bar()


def load(folder):
    """Returns the folder's model in float32, with nothing that the folder does not hold."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()
