"""The texts and prompts that the log-probability fixtures are made of; data alone."""

CHAT = "<|im_start|>{}\n{}<|im_end|>\n"
DEFAULT_SYSTEM = CHAT.format(
    "system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)

TEXTS = {
    "prose": "It was late in the afternoon when the two of them reached the top of the hill, and the whole "
    "valley lay open below, with the river shining in the middle of it like a dropped ribbon. Neither of "
    "them spoke. They had quarrelled at the inn about something very small, a matter of sixpence, and each "
    "was waiting for the other to begin. At last the younger one pointed at a line of smoke beyond the "
    "trees. \"That will be the village,\" he said. \"If we walk quickly we can be there before dark.\"",
    "science": "Photosynthesis is the process by which green plants, algae and some bacteria turn the energy "
    "of sunlight into chemical energy. In the leaves, chlorophyll absorbs light mostly in the blue and red "
    "parts of the spectrum. The light reactions split water, release oxygen, and store energy in ATP and "
    "NADPH. The Calvin cycle then uses that energy to fix carbon dioxide from the air into sugars, which "
    "the plant uses to grow. Temperature, water and the amount of carbon dioxide all limit the rate.",
    "python": "def merge_sort(items):\n    \"\"\"Return a new list with the items in ascending order.\"\"\"\n"
    "    if len(items) <= 1:\n        return list(items)\n    middle = len(items) // 2\n"
    "    left = merge_sort(items[:middle])\n    right = merge_sort(items[middle:])\n    merged = []\n"
    "    i = j = 0\n    while i < len(left) and j < len(right):\n        if left[i] <= right[j]:\n"
    "            merged.append(left[i])\n            i += 1\n        else:\n"
    "            merged.append(right[j])\n            j += 1\n    return merged + left[i:] + right[j:]\n",
    "c": "#include <stdio.h>\n\nint main(int argc, char **argv) {\n\tunsigned long total = 0;\n"
    "\tfor (int i = 1; i < argc; ++i) {\n\t\tFILE *file = fopen(argv[i], \"rb\");\n\t\tif (!file) {\n"
    "\t\t\tperror(argv[i]);\n\t\t\treturn 1;\n\t\t}\n\t\twhile (fgetc(file) != EOF) {\n\t\t\ttotal++;\n"
    "\t\t}\n\t\tfclose(file);\n\t}\n\tprintf(\"%lu bytes\\n\", total);\n\treturn 0;\n}\n",
    "json": '{"order": 10482, "customer": {"name": "Ada Moreau", "email": "ada@example.org"}, "items": '
    '[{"sku": "BK-221", "title": "The Sea Room", "quantity": 1, "price": 12.5}, {"sku": "BK-087", "title": '
    '"A Field Guide to Mosses", "quantity": 2, "price": 18.0}], "currency": "EUR", "total": 48.5, '
    '"paid": true, "notes": null}',
    "french": "Le petit village était perché sur une colline, au-dessus de la mer. Chaque matin, les pêcheurs "
    "descendaient vers le port avec leurs filets, et les enfants les suivaient en chantant. Madame Leroux, "
    "qui tenait la boulangerie, connaissait tout le monde. Elle disait toujours que le pain était meilleur "
    "quand il pleuvait, parce que les gens avaient le temps de parler.",
    "german": "Die Donau ist mit einer Länge von etwa 2850 Kilometern der zweitlängste Fluss in Europa. Sie "
    "entspringt im Schwarzwald, fließt durch zehn Länder und mündet in das Schwarze Meer. Viele große "
    "Städte liegen an ihren Ufern, darunter Wien, Budapest und Belgrad.",
    "spanish": "La biblioteca abrió sus puertas por primera vez en 1912. Durante muchos años fue el único "
    "lugar de la ciudad donde un obrero podía leer el periódico sin pagar nada. Hoy guarda más de cien mil "
    "libros, y los sábados por la mañana siempre hay una fila de niños esperando el cuento.",
    "russian": "Москва — столица России и самый большой город страны. В городе живёт больше двенадцати "
    "миллионов человек.",
    "chinese": "北京是中国的首都，也是一座有三千多年历史的城市。每年都有很多人来这里参观长城和故宫。",
    "numbers": "Year, population, area\n1950, 2536431149, 148940000\n1960, 3034949748, 148940000\n"
    "1970, 3700437046, 148940000\n1980, 4458003514, 148940000\n3.14159 + 2.71828 = 5.85987; 17 * 23 = 391; "
    "1/7 = 0.142857; 2^16 = 65536.\n",
    "chat_fact": DEFAULT_SYSTEM
    + CHAT.format("user", "What is the capital of France, and which river runs through it?")
    + CHAT.format(
        "assistant",
        "The capital of France is Paris. The river Seine runs through the city, and divides it into the "
        "Left Bank and the Right Bank.",
    ),
    "chat_turns": CHAT.format("system", "Answer in one short sentence.")
    + CHAT.format("user", "Why is the sky blue?")
    + CHAT.format("assistant", "Air scatters blue light from the sun more strongly than red light.")
    + CHAT.format("user", "And why is it red in the evening?")
    + CHAT.format(
        "assistant",
        "The light then passes through so much air that most of the blue has been scattered away.",
    ),
    "markdown": "# Making tea\n\n1. Boil a **full** kettle of fresh water.\n2. Warm the pot.\n3. Add one "
    "spoonful of tea for each person, and *one for the pot*.\n4. Pour, wait four minutes, and serve.\n\n"
    "> Milk goes in first or last; people have argued about it since 1848.\n\n| tea | minutes |\n|---|---|\n"
    "| green | 2 |\n| black | 4 |\n\nSee also: [coffee](https://example.org/coffee).\n",
    "mixed": "Meeting notes, 14 March 2023 🎉\n- Zoë presented the résumé parser; it handles 日本語 and العربية.\n"
    "- TODO: fix   the   spacing\tbug, reply to support@example.com, and ship v2.0.1-rc3.\n"
    "- Cost: £1,234.56 (≈ €1,400)… naïve estimate!!!\n",
}

PROMPTS = {
    "capital": [("user", "What is the capital of France?")],
    "story": [("user", "Write a short story about a fox who learns to swim.")],
    "code": [("user", "Write a Python function that returns the factorial of a number.")],
    "system": [
        ("system", "You are a careful science teacher. Keep every answer to three sentences."),
        ("user", "How do vaccines work?"),
    ],
}


def chat_prompt(messages):
    """Returns the model's chat template applied, with the assistant's turn opened."""
    first = "" if messages[0][0] == "system" else DEFAULT_SYSTEM
    return first + "".join(CHAT.format(*message) for message in messages) + "<|im_start|>assistant\n"
