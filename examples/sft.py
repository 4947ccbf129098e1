"""SFT through the Python API: any model on a file of rows (text, messages, prompt/completion, Alpaca, ShareGPT).

    python examples/sft.py MODEL rows.jsonl out            # writes the trained model to out/
"""

import sys
from pathlib import Path

from ladder.data.samples import Encoding, load
from ladder.data.source import Data
from ladder.engine.engine import Engine
from ladder.engine.optim import Optim
from ladder.losses import CrossEntropy
from ladder.models.load import load_model, save_model
from ladder.signals.examples import Examples
from ladder.train import Learner, train


def main(source: str, rows: str, out: str) -> None:
    loaded = load_model(source)
    samples, report = load(Data(path=rows), loaded.tokenizer, Encoding(max_tokens=1024, over_long="drop"))
    print("\n".join(report.lines()))
    signal = Examples(samples, batch=8, epochs=1)
    steps = signal.steps_per_epoch
    engine = Engine(loaded.model, Optim(lr=2e-5, warmup=0.05, schedule="cosine"), total_steps=steps)

    def show(step: int, figures: dict[str, float]) -> bool:
        print(f"step {step} of {steps}: loss {figures['loss']:.3f}")
        return False

    train(signal, [Learner(engine, CrossEntropy())], steps=steps, on_step=show)
    save_model(loaded, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:4])
