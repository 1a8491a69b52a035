"""`python -m llamaxing simulate`: OpenAI and Azure OpenAI here, with what goes wrong there.

It knows nothing of the gateway, so that it can be its witness.
"""
