"""A labelling loop over texts as one writes it by hand: transformers and nothing of Decant. Run as a process of its own.

Prints "ready" once the teacher is loaded, begins at a line on standard input, prints its times as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForMaskedLM

_MASK_SHARE = 0.15


def main() -> None:
    """Label the masked tokens of a file of documents, one a line, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--torch-threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.torch_threads)
    model = BertForMaskedLM.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    generator = torch.Generator().manual_seed(0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    started = time.time()
    documents = arguments.documents.read_text().splitlines()
    kept = []
    with torch.inference_mode():
        for first in range(0, len(documents), arguments.batch_size):
            batch = tokenizer(
                documents[first : first + arguments.batch_size],
                truncation=True,
                max_length=arguments.length,
                padding=True,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            ids = batch["input_ids"]
            masked = (torch.rand(ids.shape, generator=generator) < _MASK_SHARE) & ~batch["special_tokens_mask"].bool()
            how = torch.rand(ids.shape, generator=generator)
            seen = torch.where(masked & (how < 0.8), tokenizer.mask_token_id, ids)
            any_token = torch.randint(len(tokenizer), ids.shape, generator=generator)
            seen = torch.where(masked & (how >= 0.8) & (how < 0.9), any_token, seen)
            states = model.bert(seen, attention_mask=batch["attention_mask"]).last_hidden_state[masked]
            log_probs, class_ids = torch.topk(torch.log_softmax(model.cls(states), dim=1), arguments.k, dim=1)
            kept.append((ids, masked, class_ids.to(torch.int32), log_probs.half()))
    ended = time.time()
    num_positions = sum(len(one[2]) for one in kept)
    sys.stdout.write(json.dumps({"seconds": ended - started, "num_rows": len(documents), "num_positions": num_positions}) + "\n")


if __name__ == "__main__":
    main()
