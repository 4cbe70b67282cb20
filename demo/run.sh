#!/bin/sh
# make demo, in the environment that tools/setup_env.sh has prepared: trains a small HyperNet on
# the digits, or takes the one that is there, prints its AP and makes a contact sheet.
set -eu
config=configs/Digits-Detection/hypernet_R_18_demo.yaml
output=output/demo
weights=$output/model_final.pth

if [ -f "$weights" ]; then
    echo "==> demo: $weights is there and is only evaluated (to train anew: rm -r $output)"
    python train_net.py --config-file "$config" --eval-only OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
else
    echo "==> demo: training $config into $output (about ten minutes on two cores)"
    # --resume goes on from the last checkpoint of a run that was stopped, and else starts anew.
    python train_net.py --config-file "$config" --resume OUTPUT_DIR "$output"
fi
echo "==> demo: a contact sheet, ground truth beside detections"
python demo/contact_sheet.py --config-file "$config" --score 0.3 --output "$output/contact_sheet.png" \
    OUTPUT_DIR "$output" MODEL.WEIGHTS "$weights"
