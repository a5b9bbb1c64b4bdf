"""What both sides are asked, so that they do the same work."""

# Numbers in words go on past any length that is asked for here.
PROMPT = "Count from one to one thousand in words, one number on each line. Do not stop early."
# About 1900 tokens in either vocabulary, which with the answer stays within the context.
LONG_PROMPT = "Say how many words this is. " + "word " * 1900
N_DECODED = 128
N_CONTEXT = 2048
