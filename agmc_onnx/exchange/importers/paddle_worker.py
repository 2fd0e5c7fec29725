"""What runs in Paddle's own environment: convert a program, or answer a feed. It knows nothing of agmc_onnx.

python paddle_worker.py convert MODEL PARAMS OUT.onnx OPSET
python paddle_worker.py answer MODEL PARAMS IN.npz OUT.npz
"""

import sys


def convert(model: str, params: str, output: str, opset: str) -> None:
    """Write the program as ONNX, and say which versions did it."""
    import paddle
    import paddle2onnx

    paddle2onnx.export(
        model,
        params,
        output,
        opset_version=int(opset),
        auto_upgrade_opset=True,
        verbose=False,
        enable_onnx_checker=False,
    )
    print("versions", paddle.__version__, getattr(paddle2onnx, "__version__", "unknown"))


def answer(model: str, params: str, feed: str, output: str) -> None:
    """Write what the program answers to arrays named as its inputs, as arrays 0, 1, ... in the order of its outputs."""
    import numpy as np
    from paddle import inference

    config = inference.Config(model, params)
    config.disable_gpu()
    config.disable_glog_info()
    config.switch_ir_optim(False)
    predictor = inference.create_predictor(config)
    with np.load(feed, allow_pickle=False) as arrays:
        for name in predictor.get_input_names():
            handle = predictor.get_input_handle(name)
            handle.reshape(arrays[name].shape)
            handle.copy_from_cpu(np.ascontiguousarray(arrays[name]))
    predictor.run()
    found = [predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()]
    np.savez(output, **{str(i): array for i, array in enumerate(found)})


if __name__ == "__main__":
    {"convert": convert, "answer": answer}[sys.argv[1]](*sys.argv[2:])
