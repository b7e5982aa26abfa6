"""Files that version 0.1.0 wrote still load.

tests/written_by_0.1.0 has weights of each variant and a run that was killed after
step 2 of 4, with carried memory: by the first code of that version, whose files had
no checksums, and by its last code.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import untimed

import fbt
from fbt.training.metrics import METRICS_FILE

WRITTEN = Path(__file__).parent / "written_by_0.1.0"
LOGITS = json.loads((WRITTEN / "logits.json").read_text())
TEXT = "to be or not to be\n" * 12
KINDS = ("without_checksums", "with_checksums")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", LOGITS)
def test_weights_of_version_0_1_0_give_the_same_logits(kind, variant):
    model = fbt.LanguageModel.from_pretrained(WRITTEN / kind / variant)
    assert model.config.variant == variant
    with torch.no_grad():
        logits = model(model.tokenizer.encode("to be")[None])[0, -1]
    torch.testing.assert_close(logits, torch.tensor(LOGITS[variant]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_version_0_1_0_is_resumed(kind, tmp_path):
    folder = shutil.copytree(WRITTEN / kind / "run", tmp_path / "run")
    lines = (folder / METRICS_FILE).read_text().splitlines()
    before = [json.loads(line) for line in lines]
    run = fbt.resume(folder, TEXT, progress=False)
    assert (run.step, run.finished) == (4, True)
    assert untimed(run.metrics[:2]) == untimed(before[:2])
    # The memory of step 2 is carried on, so the loss is that of a run without a stop.
    settings = run.settings
    recipe = {"recipe": settings.recipe, "variant": "shared-kv"}
    sizes = settings.config.to_dict()
    sizes = {k: sizes[k] for k in ("d_model", "n_heads", "n_layers", "d_ff", "span")}
    whole = fbt.train(TEXT, progress=False, **recipe, **sizes)
    for one, other in zip(run.metrics, whole.metrics, strict=True):
        for name in {"loss", "val_loss", "grad_norm"} & one.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-4)
