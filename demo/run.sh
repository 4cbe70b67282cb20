#!/bin/sh
# make demo, in the environment that tools/setup_env.sh has prepared. With detectron2 it trains a
# small HyperNet on the digits, or takes the one that is there, prints its AP, makes a contact sheet,
# and exports the model and checks the file. Without, it does with the model that ships what needs no
# detectron2: detections, AP, contact sheet.
set -eu
export PYTHONWARNINGS="ignore::FutureWarning,ignore::DeprecationWarning"  # of libraries
config=configs/Digits-Detection/hypernet_R_18_demo.yaml
output=output/demo
weights=$output/model_final.pth
sheet=$output/contact_sheet.png

# Also a detectron2 that is installed and does not load must not be looked at.
hide='import sys; sys.modules["detectron2"] = None'
if [ "${DETECTRON2:-}" != none ] && python -W ignore -c 'from detectron2 import _C' 2>/dev/null; then
    hide=
fi
digits=$(python -W ignore -c "$hide
from hypernet_d2.data import digits
print(digits.generate_digits(digits.digits_root(), 'val'))")

if [ -n "$hide" ]; then
    model=hypernet_d2/deploy/models/digits.onnx
    echo "==> demo: without detectron2, $model, which ships with the project, on the digits"
    python -W ignore -c "$hide
from hypernet_d2.deploy.evaluate import main
sys.exit(main())" "$model" "$digits/annotations.json" "$digits" --sheet "$sheet"
    python -c "$hide
import hypernet_d2
print('==> demo: training needs detectron2.', hypernet_d2.DETECTRON2_HELP, end=', ')"
    echo "or name a wheel or a checkout that you have: make demo DETECTRON2=<path>"
    echo "$sheet"
    exit 0
fi

if [ -f "$weights" ]; then
    echo "==> demo: $weights is there and is only evaluated (to train anew: rm -r $output)"
    python train_net.py --config-file "$config" --eval-only OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
else
    echo "==> demo: training $config into $output (ten to twenty minutes on two cores)"
    # --resume goes on from the last checkpoint of a run that was stopped, and else starts anew.
    python train_net.py --config-file "$config" --resume OUTPUT_DIR "$output"
fi
echo "==> demo: one file that runs without detectron2; it must detect the same"
mkdir -p "$output/check"
for scene in 000000 000001 000002 000003; do cp "$digits/$scene.png" "$output/check"; done
python tools/export_model.py --config-file "$config" --format onnx --output "$output" --size 240 320 \
    --check "$output/check" OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
echo "==> demo: a contact sheet, ground truth beside detections"
python demo/contact_sheet.py --config-file "$config" --score 0.3 --output "$sheet" \
    OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
