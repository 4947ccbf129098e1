"""GRPO through the Python API: what `ladder run` does for a stage of kind rl, without checkpoints and logs.

    ladder run r1 --until pretrain                 # once, for a base model
    python examples/grpo.py runs/r1/pretrain/model out     # writes the trained model to out/
"""

import sys
from functools import partial
from pathlib import Path

from ladder.contract.rollouts import Sampling
from ladder.data.chat import encode_prompt
from ladder.decoding.sampler import NativeSampler
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import PolicyClip
from ladder.models.load import load_model, save_model
from ladder.rollout.collect import Collector
from ladder.signals.prompts import Prompts
from ladder.signals.rewards import Rewards
from ladder.tasks import build
from ladder.tasks.chain.answers import correct
from ladder.train import Learner, train


def show(step: int, figures: dict[str, float]) -> bool:
    print(f"step {step}: reward {figures['reward/mean']:.3f}, {figures['length/mean']:.1f} tokens")
    return False  # returning True ends the run


def main(source: str, out: str, steps: int = 20) -> None:
    loaded = load_model(source)
    engine = Engine(loaded.model, Optim(lr=1e-3, betas=(0.9, 0.95)))
    sampler = NativeSampler(loaded.model, loaded.tokenizer, eos=loaded.eos)
    encode = partial(encode_prompt, loaded.tokenizer)
    collect = Collector(sampler, encode, n=16, sampling=Sampling(max_tokens=60), seed=0, purpose="grpo")
    tasks = build({"chain": {"steps": [3, 6]}}).tasks("train")
    signal = Rewards(Prompts(tasks, per_step=32), collect, correct, load=sampler.load)
    train(signal, [Learner(engine, PolicyClip(), minibatches=2)], steps=steps, on_step=show)
    save_model(loaded, Path(out))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
