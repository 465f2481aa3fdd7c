"""Renders chat templates as Hugging Face does and prints `template conversation blake3` lines for tests/text.rs.

    python tests/text/make_expected.py $CALORA_TEST_DATA > tests/text/expected.txt

Needs transformers (its own Jinja set-up is used) and blake3. The templates are other people's files: only hashes of what
they give are kept. Dates are rendered for 2026-02-07 12:00 UTC; a template that refuses a conversation gives `refused`.
"""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import blake3
import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

NOW = datetime(2026, 2, 7, 12, 0, 0, tzinfo=timezone.utc)
CONVERSATIONS = json.loads((Path(__file__).parent / "conversations.json").read_text())


def templates(root: Path):
    for path in sorted((root / "configs/chat-templates").glob("*.jinja")):
        yield path.relative_to(root), path.read_text()
    for path in sorted([*root.glob("configs/*/tokenizer_config.json"), *root.glob("tokenizers/*/tokenizer_config.json")]):
        source = json.loads(path.read_text()).get("chat_template")
        if isinstance(source, str):
            yield path.relative_to(root), source


def main() -> None:
    root = Path(sys.argv[1])
    for path, source in templates(root):
        template = _compile_jinja_template(source)
        # The template's own environment gets a clock that stands still.
        template.environment.globals["strftime_now"] = NOW.strftime
        template = template.environment.from_string(source)
        for name, conversation in CONVERSATIONS.items():
            try:
                text = template.render(
                    messages=conversation["messages"],
                    tools=None,
                    documents=None,
                    add_generation_prompt=conversation["add_generation_prompt"],
                    bos_token="<s>",
                    eos_token="</s>",
                )
                result = blake3.blake3(text.encode()).hexdigest()
            except jinja2.exceptions.TemplateError:
                result = "refused"
            print(path, name, result)


if __name__ == "__main__":
    main()
