#!/usr/bin/env bash
# Installs, draws a small data set, trains on it, evaluates and predicts: a few minutes on a CPU.
# Everything it writes is in runs/quickstart, and in .venv unless a virtual environment is active.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
install_package ""

out=runs/quickstart
rm -rf "$out"/{data,run,predictions} # a fresh start: the figures below are of this very run

say "Drawing shapes"
python scripts/draw_shapes.py "$out/data"

say "Training"
python -m deeplab_jax.train --config configs/quickstart.py --workdir "$out/run" \
  --config.data.root="$out/data"

say "Evaluating"
python -m deeplab_jax.evaluate --checkpoint "$out/run"

say "Predicting"
python -m deeplab_jax.predict --checkpoint "$out/run" "$out/data/images/val" \
  --output "$out/predictions"

say "Done"
python - "$out/run/evaluation.json" <<'PY'
import json
import sys

result = json.load(open(sys.argv[1]))
print(f"Validation mean IoU: {result['mean_iou']:.4f}")
print(f"Best constant prediction (one class everywhere): {result['best_constant_mean_iou']:.4f}")
PY
cat <<END
Overlays: $out/predictions/*_overlay.jpg

What to type next (after \`source $VIRTUAL_ENV/bin/activate\`):
  your own images   copy configs/camvid_r50_os16.py to configs/mine.py, set its folder, classes and
                    sizes, then: python -m deeplab_jax.train --config configs/mine.py
  a table recipe    python -m deeplab_jax.train --config configs/voc_r50_os16.py \\
                      --config.data.root=DIR --config.init.backbone=DIR
  the tests         bash scripts/test.sh

Open in a browser: $out/run/report.html
END
