"""Prints what the base model and an adapter answer, greedily, to the examples of its task.json.

    python models/train/examples.py TASK [--tokens N]
"""

import argparse
import json

import torch
from peft import PeftModel

from common import ADAPTERS, load_base, load_tokenizer
from rows import TASKS, render
from score import generate


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--tokens", type=int, default=40)
    a = parser.parse_args()
    folder = ADAPTERS / a.task
    task = json.loads((folder / "task.json").read_text())
    tokenizer = load_tokenizer()
    model = PeftModel.from_pretrained(load_base(), folder).eval()
    for example in task["examples"]:
        prompt = tokenizer(example if task["raw"] else render(tokenizer, example)).input_ids
        with model.disable_adapter():
            base = generate(model, [prompt], a.tokens)[0]
        own = generate(model, [prompt], a.tokens)[0]
        print(f"prompt   {example!r}\nbase     {tokenizer.decode(base)!r}\nadapter  {tokenizer.decode(own)!r}\n")


if __name__ == "__main__":
    main()
