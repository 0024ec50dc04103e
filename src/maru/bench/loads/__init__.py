"""What replicas are asked: prompts, and sessions of them.

    prompts        prompts that share nothing, of real text where there is a model
    contexts       long contexts of packed source code, and conversations about them
    streams        streams of requests, made here or read from files in their published formats
    agentic        tool-calling sessions with real tools' answers; `agentic_tasks` runs the tools
    drive          keeps replicas busy with sessions

Equal names give equal prompts, in every run.
"""
