"""Twenty different prompts: questions, code, several languages, lists, one word, several paragraphs."""

CHATS = [
    "What is the capital of France?",
    "Write a short poem about the sea in autumn.",
    "Explain how a bicycle stays upright, step by step.",
    "Give me three names for a bakery.",
    "Is 91 a prime number? Explain your answer.",
    "Schreibe einen kurzen Brief an meine Großmutter.",
    "¿Cuáles son los planetas del sistema solar?",
    "日本の首都はどこですか？",
    "Translate to French: The weather is nice today, so we will go for a walk.",
    "Hi",
    (
        "Summarise this text in one sentence. The steam engine changed how goods were made. Before it, most work was "
        "done by hand or with the help of animals, wind and water. With it, factories could be built anywhere, and "
        "they grew quickly near coal fields and harbours. Cities grew with them, and so did the railways that joined "
        "them. Not everybody gained: many people worked long hours in bad air for little pay, and children worked too. "
        "Only slowly did laws limit the hours and the age of those who worked. Historians still argue about whether "
        "life became better or worse for most people in the first fifty years, and the answer depends on what is "
        "counted: wages, height, length of life, or how people wrote about it themselves."
    ),
    "List the ingredients of a simple vegetable soup, one per line, with amounts.",
]

TEXTS = [
    "def fibonacci(n):\n    ",
    "The three laws of motion are",
    "Once upon a time, in a village at the edge of a forest,",
    "SELECT name, COUNT(*) FROM orders",
    "1, 1, 2, 3, 5, 8,",
    "<html>\n<head>\n<title>",
    "Q: What do bees make?\nA: Honey.\nQ: What do cows give?\nA:",
    "import numpy as np\n\nclass Matrix:\n    def __init__(self, rows, columns):\n",
]
