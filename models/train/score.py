"""Held-out figures of a model on rows (see rows.py), greedy and without randomness."""

import math
from collections import Counter

import torch

from common import BOS, EOS


def encode(tokenizer, row: dict) -> tuple[list[int], list[int]]:
    """Token ids of the context (BOS first) and of what follows it: the answer and EOS, or the text."""
    plain = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    if "text" in row:
        return [BOS], plain(row["text"])
    prompt = tokenizer(row["prompt"]).input_ids
    assert prompt[:1] == [BOS] and prompt.count(BOS) == 1, "the tokenizer puts BOS there, once"
    answer = row["completion"] if "completion" in row else row["choices"][row["label"]]
    ids = plain(answer)
    assert tokenizer(row["prompt"] + answer).input_ids == prompt + ids, "the ids of the joined string"
    return prompt, [*ids, EOS]


def pad(sequences: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences as one tensor of ids (0 where there is none) and a mask."""
    longest = max(map(len, sequences))
    fill = [[0] * (longest - len(s)) for s in sequences]
    ids = [f + s if left else s + f for s, f in zip(sequences, fill)]
    mask = [[0] * len(f) + [1] * len(s) if left else [1] * len(s) + [0] * len(f) for s, f in zip(sequences, fill)]
    return torch.tensor(ids), torch.tensor(mask)


def log_likelihoods(model, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """Sum of the log-probabilities of each answer behind its context."""
    found = []
    for i in range(0, len(pairs), 32):
        some = pairs[i : i + 32]
        ids, mask = pad([a + b for a, b in some])
        logs = model(ids, attention_mask=mask).logits.log_softmax(-1)
        for n, (a, b) in enumerate(some):
            at = torch.arange(len(a) - 1, len(a) + len(b) - 1)
            found.append(logs[n, at, torch.tensor(b)].sum().item())
    return found


def generate(model, prompts: list[list[int]], most: int) -> list[list[int]]:
    """Greedy continuations up to EOS."""
    found = []
    for i in range(0, len(prompts), 50):
        ids, mask = pad(prompts[i : i + 50], left=True)
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=EOS, pad_token_id=0
        )
        for row in out[:, ids.shape[1] :].tolist():
            found.append(row[: row.index(EOS)] if EOS in row else row)
    return found


def token_f1(got: str, want: str) -> float:
    """F1 over words split at blanks, lower case."""
    a, b = Counter(got.lower().split()), Counter(want.lower().split())
    both = sum((a & b).values())
    return 2 * both / (sum(a.values()) + sum(b.values())) if both else 0.0


@torch.inference_mode()
def score(model, tokenizer, rows: list[dict]) -> dict:
    """The figures of `calora eval` for these rows."""
    model.eval()
    pairs = [encode(tokenizer, row) for row in rows]
    if "choices" in rows[0]:
        answers = [tokenizer(c, add_special_tokens=False).input_ids for c in rows[0]["choices"]]
        columns = [log_likelihoods(model, [(a, c) for a, _ in pairs]) for c in answers]
        right = sum(max(range(len(v)), key=v.__getitem__) == row["label"] for v, row in zip(zip(*columns), rows))
        return {"rows": len(rows), "accuracy": right / len(rows)}
    if "text" in rows[0]:
        loss = -sum(log_likelihoods(model, pairs)) / sum(len(b) for _, b in pairs)
        return {"rows": len(rows), "loss": loss, "perplexity": math.exp(loss)}
    order = sorted(range(len(rows)), key=lambda n: len(pairs[n][0]))
    texts = generate(model, [pairs[n][0] for n in order], max(len(b) for _, b in pairs) + 4)
    texts = [tokenizer.decode(t).strip() for t in texts]
    wanted = [rows[n]["completion"] for n in order]
    exact = sum(g == w for g, w in zip(texts, wanted))
    f1 = sum(map(token_f1, texts, wanted))
    return {"rows": len(rows), "exact_match": exact / len(rows), "token_f1": f1 / len(rows)}
