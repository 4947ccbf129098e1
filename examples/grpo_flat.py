"""GRPO (Shao et al. 2024, arXiv:2402.03300) in one file with torch and transformers, to be read from top to bottom.

    ladder run r1 --until pretrain                          # once, for a base model
    python examples/grpo_flat.py runs/r1/pretrain/model 20

    A_i = (r_i - mean of the group) / (std of the group)
    loss = -mean over sampled tokens of min(ratio A, clip(ratio, 1 - CLIP, 1 + CLIP) A)

The same algorithm as the package's, without what makes it fast (key-value cache, packing, shared prompts) and safe
(resume, failed rewards). Shapes: P prompts, G answers per prompt, B = P * G, L tokens, V vocabulary size.
"""

import random
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

P, G = 16, 16  # prompts per step, answers per prompt
MAX_TOKENS = 60  # per answer
LR, CLIP = 1e-3, 0.2
SIGNS = {"+1": 1, "+2": 2, "-1": -1, "-2": -2}


# ---------------------------------------------------------------- the task


def problem(r: random.Random) -> tuple[str, str]:
    """A chain of 3 to 6 additions mod 10, and its answer: ("9 a -2 b +1 c +2 =", "0")."""
    value = r.randrange(10)
    words = [str(value)]
    for label in "abcdef"[: r.randint(3, 6)]:
        sign = r.choice(list(SIGNS))
        words += [label, sign]
        value = (value + SIGNS[sign]) % 10
    return " ".join([*words, "="]), str(value)


def reward(answer: str, gold: str) -> float:
    """1 when the answer ends with "# <the right digit>", else 0; the working is not judged."""
    words = answer.split()
    return float(words[-2:] == ["#", gold] and words.count("#") == 1)


# ---------------------------------------------------------------- sampling


@torch.no_grad()
def sample(model, prompts: torch.Tensor, lengths: torch.Tensor, eos: int) -> tuple[torch.Tensor, ...]:
    """Samples answers to right-padded prompts [B, L0]: (tokens [B, L], mask of sampled tokens [B, L], logps [B, L])."""
    B, L0 = prompts.shape
    L = L0 + MAX_TOKENS
    tokens = torch.full((B, L), eos)
    tokens[:, :L0] = prompts
    sampled, logps = torch.zeros(B, L, dtype=torch.bool), torch.zeros(B, L)
    position, alive = lengths.clone(), torch.ones(B, dtype=torch.bool)
    row = torch.arange(B)
    for _ in range(MAX_TOKENS):
        width = int(position.max())
        logits = model(input_ids=tokens[:, :width]).logits[row, position - 1].float()  # at each row's last token
        logprobs_BV = F.log_softmax(logits, -1)
        token = torch.multinomial(logprobs_BV.exp(), 1)[:, 0]
        i = alive.nonzero()[:, 0]
        at = position[i]
        tokens[i, at], sampled[i, at], logps[i, at] = token[i], True, logprobs_BV[i, token[i]]
        position = position + alive
        alive &= token != eos
        if not alive.any():
            break
    width = int(position.max())
    return tokens[:, :width], sampled[:, :width], logps[:, :width]


def logprobs(model, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token given the tokens before it, [B, L]; 0 for the first token."""
    logprobs_BLV = F.log_softmax(model(input_ids=tokens[:, :-1]).logits.float(), -1)
    token_logps = logprobs_BLV.gather(-1, tokens[:, 1:, None])[..., 0]
    return F.pad(token_logps, (1, 0))


# ---------------------------------------------------------------- the loop


def main(source: str, steps: int) -> None:
    torch.manual_seed(0)
    r = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id

    for step in range(steps):
        # 1. sample G answers to each of P prompts from the current policy
        problems = [problem(r) for _ in range(P)]
        ids = [[bos, *tokenizer.encode(text, add_special_tokens=False)] for text, _ in problems for _ in range(G)]
        lengths = torch.tensor([len(x) for x in ids])
        prompts = torch.full((P * G, int(lengths.max())), eos)
        for i, x in enumerate(ids):
            prompts[i, : len(x)] = torch.tensor(x)
        tokens, mask, old_logps = sample(model, prompts, lengths, eos)

        # 2. rewards and advantages: each answer compared with the other answers to its prompt
        texts = [tokenizer.decode(t[m], skip_special_tokens=True) for t, m in zip(tokens, mask, strict=True)]
        golds = [gold for _, gold in problems for _ in range(G)]
        rewards = torch.tensor([reward(t, g) for t, g in zip(texts, golds, strict=True)]).view(P, G)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
        advantages = advantages.view(-1, 1)  # [B, 1]: all tokens of an answer have its advantage

        # 3. one optimiser step on the clipped surrogate, averaged over all sampled tokens
        ratio = (logprobs(model, tokens) - old_logps).exp()  # 1 up to rounding: one optimiser step per batch
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        loss = -torch.where(mask, surrogate, 0.0).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        length = mask.sum(1).float().mean()
        print(f"step {step + 1}: reward {rewards.mean():.3f}, {length:.1f} tokens", flush=True)
        print(f"    {problems[0][0]} {texts[0]}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
