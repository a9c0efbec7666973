"""Many images on many machines: Ray runs an explainer per actor, and the results are Parquet files.

`inputs` finds the images, `job` says what is computed of them, `worker` computes it, `run` hands the images to the
workers, and `shards` writes and reads the results. Only `run` imports Ray.
"""
