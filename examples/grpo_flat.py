"""GRPO with nothing hidden: one file, torch and transformers, to be read from top to bottom.

    ladder run r1                                           # once, for a base model
    python examples/grpo_flat.py runs/r1/pretrain/model 20

What is here is what the package does, without what makes it fast (no cache, no packing, no shared prompts) or safe
(no resume, no failed rewards). Shapes: P prompts, G answers to each, B = P * G, L tokens, V words.
"""

import random
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

P, G = 16, 16  # prompts a step, answers to each
MOST = 60  # tokens of an answer
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
    """1 when the answer ends with "# <the right digit>", else 0. Nothing about how it got there."""
    words = answer.split()
    return float(words[-2:] == ["#", gold] and words.count("#") == 1)


# ---------------------------------------------------------------- sampling


@torch.no_grad()
def sample(model, prompts: torch.Tensor, lengths: torch.Tensor, eos: int) -> tuple[torch.Tensor, ...]:
    """Answers to right-padded prompts [B, L0]: (tokens [B, L], mask of what was drawn [B, L], logps [B, L])."""
    B, L0 = prompts.shape
    L = L0 + MOST
    tokens = torch.full((B, L), eos)
    tokens[:, :L0] = prompts
    drawn, logps = torch.zeros(B, L, dtype=torch.bool), torch.zeros(B, L)
    at, alive = lengths.clone(), torch.ones(B, dtype=torch.bool)
    row = torch.arange(B)
    for _ in range(MOST):
        width = int(at.max())
        logits = model(input_ids=tokens[:, :width]).logits[row, at - 1].float()  # what follows each row's last token
        every = F.log_softmax(logits, -1)  # [B, V]
        token = torch.multinomial(every.exp(), 1)[:, 0]
        i = alive.nonzero()[:, 0]
        tokens[i, at[i]], drawn[i, at[i]], logps[i, at[i]] = token[i], True, every[i, token[i]]
        at = at + alive
        alive &= token != eos
        if not alive.any():
            break
    width = int(at.max())
    return tokens[:, :width], drawn[:, :width], logps[:, :width]


def logprobs(model, tokens: torch.Tensor) -> torch.Tensor:
    """logp of each token given those before it, [B, L]; the first has none."""
    every = F.log_softmax(model(input_ids=tokens[:, :-1]).logits.float(), -1)
    picked = every.gather(-1, tokens[:, 1:, None])[..., 0]
    return F.pad(picked, (1, 0))


# ---------------------------------------------------------------- the loop


def main(source: str, steps: int) -> None:
    torch.manual_seed(0)
    r = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id

    for step in range(steps):
        # 1. answers: G to each of P prompts, drawn from the policy as it is now
        problems = [problem(r) for _ in range(P)]
        ids = [[bos, *tokenizer.encode(text, add_special_tokens=False)] for text, _ in problems for _ in range(G)]
        lengths = torch.tensor([len(x) for x in ids])
        prompts = torch.full((P * G, int(lengths.max())), eos)
        for i, x in enumerate(ids):
            prompts[i, : len(x)] = torch.tensor(x)
        tokens, mask, old = sample(model, prompts, lengths, eos)

        # 2. rewards, and from them advantages: better or worse than the other answers to the same prompt
        texts = [tokenizer.decode(t[m], skip_special_tokens=True) for t, m in zip(tokens, mask, strict=True)]
        golds = [gold for _, gold in problems for _ in range(G)]
        rewards = torch.tensor([reward(t, g) for t, g in zip(texts, golds, strict=True)]).view(P, G)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
        advantages = advantages.view(-1, 1)  # [B, 1]: every token of an answer gets the answer's

        # 3. one step up the clipped surrogate, averaged over all tokens that were drawn
        ratio = (logprobs(model, tokens) - old).exp()  # 1 on the first step after sampling, up to rounding
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
