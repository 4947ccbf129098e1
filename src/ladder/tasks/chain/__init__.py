"""The embedded world: addition chains mod 10 with labelled steps, worked out in two notations or answered off-hand.

    9 a -2 b +1 c +2 =                                  the problem: start at 9, apply a, b, c
    # 0                                                 answered off-hand
    a 9 -2 7 b 七 加一 八 c 8 +2 0 # 0                   worked, in a mixture of notations

`words.py` has the vocabulary, `answers.py` judges answers, `source.py` deals problems, `web.py` writes the corpus.
"""
