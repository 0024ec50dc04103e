"""What replicas are asked.

prompts     prompts that share nothing, of real text where there is a model
"""
