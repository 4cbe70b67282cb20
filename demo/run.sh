#!/bin/sh
# make demo, in the environment that tools/setup_env.sh has prepared. First, in seconds, the model
# that ships with the project detects digits. With detectron2 a small HyperNet is then trained on the
# digits (or the one of an earlier run is used), its AP is measured, detections are drawn on a contact
# sheet, and the model is exported and the exported file compared with it.
set -eu
export PYTHONWARNINGS="ignore::FutureWarning,ignore::DeprecationWarning"  # of libraries
config=configs/Digits-Detection/hypernet_R_18_demo.yaml
shipped=hypernet_d2/deploy/models/digits.onnx
output=output/demo
weights=$output/model_final.pth

# The deployed model needs no detectron2, and starts faster without it.
hide='import sys; sys.modules["detectron2"] = None'

# run_shipped SHEET FOLDER: the AP of the model that ships on a folder of digits, and a contact sheet.
run_shipped() {
    python -W ignore -c "$hide
from hypernet_d2.deploy.evaluate import main
from hypernet_d2_cli import run
sys.exit(run(main))" "$shipped" "$2/annotations.json" "$2" --sheet "$1"
}

# digits ROOT [NUMBER]: generate the validation scenes, or the first few of them; their folder.
digits() {
    python -W ignore -c "$hide
from hypernet_d2.data.datasets.digits import digits_root, generate_digits
print(generate_digits($1, 'val', num_images=${2:-None}))"
}

if [ "${DETECTRON2:-}" = none ] || ! python -W ignore -c 'import hypernet_d2._detectron2' 2>/dev/null; then
    echo "==> demo: without detectron2: the model that ships with the project on 100 scenes of digits;" \
        "no training and no export"
    sheet=$output/contact_sheet.png
    run_shipped "$sheet" "$(digits 'digits_root()')"
    echo "==> demo: to train, name a wheel or a checkout: make demo DETECTRON2=<path>, or:"
    python -c "$hide
import hypernet_d2
print(hypernet_d2.DETECTRON2_HELP)"
    echo "$sheet"
    exit 0
fi

sheet=$output/first_look.png
echo "==> demo: the model that ships with the project, trained longer than the one below, on 8 scenes"
run_shipped "$sheet" "$(digits "'$output/first_look'" 8)"
echo "==> demo: a first look: $sheet (ground truth beside detections)"

if [ -f "$weights" ]; then
    echo "==> demo: $weights exists and is only evaluated (to train again: rm -r $output)"
    python train_net.py --config-file "$config" --eval-only OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
else
    echo "==> demo: training $config into $output, ten to twenty minutes on two cores" \
        "(\"eta\" in each line is the time left)"
    # --resume continues from the last checkpoint of an interrupted run, and otherwise starts anew.
    python train_net.py --config-file "$config" --resume OUTPUT_DIR "$output"
fi
echo "==> demo: one file that runs without detectron2, and must detect the same"
scenes=$(digits 'digits_root()')
mkdir -p "$output/check"
for scene in 000000 000001 000002 000003; do cp "$scenes/$scene.png" "$output/check"; done
python tools/export_model.py --config-file "$config" --format onnx --output "$output" --size 240 320 \
    --check "$output/check" OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
echo "==> demo: a contact sheet, ground truth beside detections"
python demo/contact_sheet.py --config-file "$config" --score 0.3 --output "$output/contact_sheet.png" \
    OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
