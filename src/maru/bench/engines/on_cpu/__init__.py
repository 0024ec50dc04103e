"""What vLLM and LMCache lack where there is no GPU, so that tests and measurements can run them whole on a CPU.

lmcache_in_process  LMCache's connector, with a way into vLLM's memory on a CPU
lmcache_mp          LMCache's multi-process connector, past a check of vLLM's that its libraries fail
offloading_spec     vLLM's own offloading, whose spec refuses CPUs

vLLM loads each by its name; neither engine is patched on disk. Nothing of this is needed, or wanted, beside a GPU.
"""
