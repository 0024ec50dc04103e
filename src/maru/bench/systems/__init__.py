"""What a figure compares: a way of caching KV, deployed under one engine, asked by prompts.

    contract      what a system is: it deploys servers and replicas; a replica answers prompts
    roster        which systems there are under each engine, and what each needs
    children      replicas that are children of ours, asked by lines of JSON
    transformers  the engine `transformers`: a real model, in `transformers_child`
    stores        the engine `synthetic`: data paths at full size without a model, in `stores_child`
    pools         the pools that deployments make for themselves
    models        the KV sizes of named models
    vllm          the engines `vllm` and `lmcache`: whole serving engines

Everything that a system starts ends with its deployment.
"""
