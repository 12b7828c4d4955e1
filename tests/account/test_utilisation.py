from deeplab_jax.account.goodput import read_account
from deeplab_jax.account.utilisation import peak_of
from deeplab_jax.config import to_json
from deeplab_jax.dry_run.flops import count_macs


def test_utilisation_takes_kept_steps_and_all_devices(call, killed_twice, narrow_config):
    config = narrow_config("data.crop_size=64,64", "model.remat=1")  # which is no use of the model
    assert peak_of(read_account(killed_twice), config) is None  # of a processor
    (killed_twice / "config.json").write_text(to_json(config))
    code, out, err = call("goodput", killed_twice, "--peak-tflops", "0.0001")
    assert (code, err) == (0, "")
    # 40 steps of 4 images in 225 s on two devices; 3 passes of 2 FLOP a multiply-add.
    used = 160 * 3 * 2 * sum(count_macs(config).values()) / (225 * 2 * 1e8)
    assert 0.001 < used < 1
    told = f"model FLOP utilisation {100 * used:.2f} % of 0.0001 TFLOP/s a device"
    assert told in out
