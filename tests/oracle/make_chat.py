"""Writes chat.json: conversations as transformers' way with the model's template renders them.

One job: chat fixtures. jinja2's immutable sandbox with trim_blocks and lstrip_blocks
is what apply_chat_template uses; each text is then encoded with control tokens parsed.
A content that holds a control token's text would become that token here, so no fixture
holds one: what an engine does about that is its own rule.
"""

import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

import tokenizer_reference
from llama_reference import model_path

CONVERSATIONS = [
    [("user", "Hello!")],
    [("user", "What is the capital of France?")],
    [("system", "You are a pirate. Answer like one."), ("user", "Where is the treasure?")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke.")],
    [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "and 3+3?"), ("assistant", "6")],
    [("user", "")],
    [("system", ""), ("user", "An empty system message.")],
    [("user", "  spaces kept  \n\n\ttabs too\r\n")],
    [("user", "Emoji 😀👨\u200d👩\u200d👧 and 日本語, العربية, हिन्दी")],
    [("user", "{{ not a template }} {% if x %} %} <b>&amp;</b> \"quoted\" 'single' \\n")],
    [("assistant", "I speak first."), ("user", "So you do.")],
    [("user", "one"), ("user", "two in a row"), ("system", "a late system message"), ("user", "three")],
    [("user", "def f(x):\n    return x[0] | {1: 2}\n\nWhat does this do?")],
    [("user", "Result?"), ("assistant", "Looking."), ("tool", "{\"temperature\": 21.5}"), ("user", "Well?")],
]


def main():
    """Renders every conversation with and without the assistant's opened turn."""
    fields = tokenizer_reference.fields_of(model_path())
    tokenizer = tokenizer_reference.build(fields, parse_special=True)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(fields["tokenizer.chat_template"])
    entries = []
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for add in (True, False):
            text = template.render(messages=messages, add_generation_prompt=add)
            ids = tokenizer_reference.encode(tokenizer, text)
            entries.append({"messages": messages, "add_generation_prompt": add, "text": text, "ids": ids})
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    Path(__file__).with_name("chat.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
