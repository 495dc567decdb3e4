"""The strings that the tokenizer fixtures are made of; data alone.

Invisible and right-to-left marks are written as escapes, so that a reader sees them.
"""

CONTROL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>",
    "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>",
    "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<jupyter_script>",
    "<empty_output>",
]  # fmt: skip

ENGLISH = [
    "",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    " leading space",
    "trailing space ",
    "It's, they're, we've, I'm, you'll, he'd, can't: contractions.",
    "IT'S THEY'RE WE'VE I'M YOU'LL HE'D CAN'T",
    "It\u2019s a \u2018curly\u2019 \u201cquotation\u201d\u2026",
    "'s't're've'm'll'd",
    "'tis 'twas o'clock rock'n'roll",
    "don''t don'''t",
    "CamelCaseIdentifier snake_case_identifier kebab-case-identifier SCREAMING_SNAKE",
    "e.g., i.e., etc.; (parenthetical) [bracketed] {braced} <angled>",
    "Wait... what?! No!!! -- really --- truly",
    "a-b_c.d,e;f:g!h?i",
    "supercalifragilisticexpialidocious",
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "Mr. and Mrs. O'Brien-Smith live at 221B Baker St., London NW1 6XE.",
    "user@example.com https://example.org/path?query=1&other=two#fragment",
    "C:\\Program Files\\Example\\file.txt /usr/local/bin/example ~/.config",
    "The the THE tHe", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ab" * 100, "x" * 1000,
    "word " * 60, "\u00e9" * 64, "Donaudampfschifffahrtsgesellschaftskapit\u00e4nsm\u00fctze",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch",
]  # fmt: skip

LANGUAGES = [
    "Le c\u0153ur a ses raisons que la raison ne conna\u00eet point.",
    "\u00c7a va? \u00c0 bient\u00f4t, o\u00f9 \u00eates-vous, na\u00efve Zo\u00eb?",
    "Der Fluß fließt über große, schöne Städte; Äpfel, Öl, Übung.",
    "El ni\u00f1o comi\u00f3 jalape\u00f1os. \u00bfQu\u00e9 pas\u00f3? \u00a1Nada!",
    "A rápida raposa marrom não pulou; coração, pão, três.",
    "Perché la città è così bella? Più o meno così.",
    "Zażółć gęślą jaźń. Chrząszcz brzmi w trzcinie.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Árvíztűrő tükörfúrógép", "Flygande bäckasiner söka hwila på mjuka tuvor.",
    "Høj bly gom vandt fræk sexquiz på wc.", "Þú ert góður, íslenska er falleg: ð, æ, ö.",
    "Hyvää päivää, mitä kuuluu? Äiti söi jäätelöä.", "Tere, kuidas läheb? Õunad ja öö.",
    "Labdien, kā jums klājas? Šodien ir jauka diena.", "Labas, kaip sekasi? Ačiū, gerai, ąžuolas.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul ılık.",
    "Tiếng Việt có nhiều dấu: ả ã á ạ ằ ẵ ổ ữ.", "Selamat pagi, apa kabar? Terima kasih banyak.",
    "Ang mabilis na kayumangging soro.", "Habari ya asubuhi, rafiki yangu?", "Báwo ni, ẹ káàárọ̀ o",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Щастя, здоров'я, їжак і ґудзик в Україні.", "Чуваш, бъдете добре дошли в София!",
    "Љубазни фењерџија чађавог лица хоће да ми покаже штос.", "Сайн байна уу? Монгол хэл.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "Ἐν ἀρχῇ ἦν ὁ λόγος.",
    "Բարեւ, ինչպես ես դու այսօր?", "გამარჯობა, როგორ ხარ დღეს?",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, \u05de\u05d4 \u05e9\u05dc\u05d5\u05de\u05da?",
    "\u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea \u05d1\u05b8\u05bc\u05e8\u05b8\u05d0",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f",
    "\u0628\u0650\u0633\u0652\u0645\u0650 \u0627\u0644\u0644\u0651\u064e\u0647\u0650",
    "\u0633\u0644\u0627\u0645 \u062f\u0646\u06cc\u0627\u060c \u0686\u0637\u0648\u0631\u06cc\u061f \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0622\u067e \u06a9\u06cc\u0633\u06d2 \u06c1\u06cc\u06ba\u061f",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय", "ওহে বিশ্ব, তুমি কেমন আছো?", "ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਦੁਨੀਆ",
    "નમસ્તે દુનિયા, તમે કેમ છો?", "வணக்கம் உலகம், எப்படி இருக்கிறீர்கள்?", "హలో ప్రపంచం, ఎలా ఉన్నారు?",
    "ನಮಸ್ಕಾರ ಪ್ರಪಂಚ", "ഹലോ ലോകം, സുഖമാണോ?", "හෙලෝ ලෝකය, කොහොමද?", "สวัสดีชาวโลก คุณเป็นอย่างไรบ้าง",
    "ສະບາຍດີຊາວໂລກ", "សួស្តីពិភពលោក", "မင်္ဂလာပါ ကမ္ဘာလောက", "བོད་སྐད་ཀྱི་དཔེ་ཆ།", "ሰላም ልዑል፣ እንዴት ነህ?",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ᐃᓄᒃᑎᑐᑦ", "你好，世界！今天天气怎么样？", "臺灣的繁體中文：學習與教學。",
    "これは日本語のテストです。カタカナ、ひらがな、漢字。", "ﾊﾝｶｸｶﾀｶﾅ　全角ＡＢＣ１２３", "안녕하세요, 세계! 오늘 어때요?",
    "\u1112\u1161\u11ab\u1100\u1173\u11af", "粵語:佢哋喺度食緊嘢。", "㐀㐁𠀀𠀁𪚥", "ᚠᛇᚻ᛫ᛒᛦᚦ", "𐌰𐌱𐌲 𐍈", "ⴰⵣⵓⵍ", "ߊߟߎ",
    "English и русский 混ざった العربية text", "abc\u05d0\u05d1\u05d2def\u0645\u0631ghi",
]  # fmt: skip

EMOJI = [
    "😀", "😀😃😄😁", "I ❤️ you", "❤", "❤️\u200d🔥", "👍🏽 👍🏿 👍", "👨\u200d👩\u200d👧\u200d👦 family",
    "🏳️\u200d🌈🏴\u200d☠️", "🇫🇷🇩🇪🇯🇵 flags", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "1️⃣2️⃣3️⃣#️⃣", "👩🏾\u200d💻 codes", "🧑\u200d🚀", "🤷🏻\u200d♀️", "☺︎☺️", "🫠🫡🫥🪿", "🎉🎊🥳 party!!!",
    "text😀text", " 😀 😀 ", "🧑🏻\u200d❤️\u200d💋\u200d🧑🏿",
]  # fmt: skip

SPACES = [
    " ", "  ", "   ", "    ", "     ", " " * 8, " " * 15, " " * 16, " " * 17, " " * 100,
    "\t", "\t\t", "\t\t\t\t", "\n", "\n\n", "\n\n\n", "\n" * 20, "\r", "\r\n", "\r\n\r\n", "\n\r",
    " \n", "\n ", " \n ", "  \n  ", "\t\n", "\n\t", " \t ", "\t \t", "a b", "a  b", "a   b", "a\tb",
    "a\t\tb", "a \tb", "a\t b", "a\nb", "a\n\nb", "a \n b", "a\r\nb", "a\r\n\r\nb\r\n",
    "line one\r\nline two\r\n\tindented\r\n", "  two leading", "    four leading", "trailing  ",
    "trailing\n", "trailing\n\n", "trailing \n\n  ", "a\u00a0b", "\u00a0", "a\u2003b\u2009c\u202fd",
    "\u3000全角\u3000", "a\u2028b\u2029c", "a\u0085b", "a\u000bb\u000cc", "\u1680\u205f", "  123", "a  1",
    "\n\n1. item\n\n2. item", "x   \n\n\n   y", "\n  - a\n    - b\n", "   .", "   's",
]  # fmt: skip

NUMBERS = [
    "0", "7", "42", "123", "1234567890", "3.14159", "-17", "+5", "1,234,567.89", "1e10 6.02e-23", "0xDEADBEEF",
    "0b1011", "2023-03-14T15:09:26.535Z", "v1.2.3-rc4", "$1,234.56 £99 €12 ¥500", "50% of 200 = 100",
    "1st 2nd 3rd 4th", "a1b2c3", "x2", "2x", " 1", " 12", "12 34", "1 2 3", "½ ¼ ¾ ⅓", "x² + y³ = z⁴", "H₂O CO₂",
    "Ⅰ Ⅱ Ⅷ ⅻ", "①②③ ⑩ ⒈", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵", "०१२३४५", "０１２３", "一二三百千万", "৳১০০", "𝟘𝟙𝟚 𝟏𝟐",
    "192.168.0.1:8080", "(555) 123-4567", "1/2 3/4", "10^6 2**8", "00000000", "9" * 50, "𒐀", "፩፪፫", "1\u20e3",
]  # fmt: skip

CODE = [
    "def f(x):\n    return x ** 2\n", "if (a && b || !c) { return a[i++] ? *p : &q; }",
    "fn main() -> Result<(), Box<dyn Error>> {\n    println!(\"{:?}\", x);\n}\n",
    "#include <vector>\nstd::vector<int> v{1, 2, 3};\n", "SELECT * FROM users WHERE id = 42 AND name LIKE '%a%';",
    "<html><body class=\"x\">&nbsp;&amp;</body></html>", "{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"\\u00e9\\n\"}}",
    "for i in $(seq 1 10); do echo \"$i\"; done | sort -rn > out.txt 2>&1",
    "const f = async (x) => await fetch(`/api/${x}`);", "=> -> <- <= >= == != === !== := ::= |> <|> >>= <<",
    "//////////", "##########", "----------", "==========", "**********", "__init__", "____", "......", "\\\\n\\t",
    "\tif x:\n\t\tpass\n", "        return self._value\n", "a=b;c=d", "/* comment */ // line", "'''docstring'''",
    "(defun f (x) (* x x))", "λx.x", "∀x∈ℝ: x² ≥ 0 ∧ ¬∃y", "\\frac{a}{b} \\int_0^\\infty e^{-x^2} dx",
    "@decorator\nclass A(B):\n    pass", "git commit -m \"fix: it's #42\"", "x!=y~z^w|v&u%t$s#r@q`p",
]  # fmt: skip

MARKS = [
    "e\u0301 versus \u00e9", "a\u0300\u0301\u0302\u0303\u0304", "Z\u0351\u036b\u0343\u036a\u0302a\u0346\u0321l\u034eg\u031eo\u0348",
    "\u0301", " \u0301", "n\u0303 o\u0308", "\u1e69 s\u0323\u0307 s\u0307\u0323", "ﬁ ﬂ ﬃ ligatures", "Å Å Å", "ﷺ", "\ufb2f",
    "zero\u200bwidth", "zero\u200cnon\u200djoiner", "\u200b", "\ufeffbom", "\ufeff", "soft\u00adhyphen", "word\u2060joiner",
    "\u202aLRE\u202c \u202bRLE\u202c \u202eRLO\u202c", "\u2066iso\u2069lates\u200e\u200f", "variation\ufe0e\ufe0f", "\u180e",
    "\u0378 unassigned", "\ue000 private \uf8ff", "\U000f0000\U0010fffd", "\ufffd", "\ufffe\uffff", "\U0001f9ff\U0001fae0",
    "™ © ® § ¶ † ‡ • ‰", "→ ← ↑ ↓ ⇒ ⇔", "█▓▒░ ┌─┐│└┘", "♠♥♦♣ ♪♫ ☀☁☂", "ℌ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝓈𝒸𝓇𝒾𝓅𝓉", "ＦＵＬＬ", "ǅ ǈ ǋ", "ß ẞ ſ", "𝠀𝠃 \U0005118d",
]  # fmt: skip

CONTROLS = [
    "\x00", "a\x00b", "\x01\x02\x03", "\x04", "a\x04b", "\x05\x06\x07", "\x08\x0b\x0c", "\x0e\x0f\x10\x11\x12",
    "\x13\x14", "x\x16y", "\x1b[31mred\x1b[0m", "\x1c\x1d\x1e\x1f", "\x7f", "\x80\x81\x9f", "tab\tbell\x07end", "\x04 \x06",
]  # fmt: skip

# Each is encoded twice: with control tokens read as tokens, and as plain text.
SPECIAL = [
    *CONTROL_TOKENS, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|>",
    "<|im_start|> <|im_end|>", " <|im_end|> ", "a<|im_end|>b", "<|im_end|>\n\n", "\n<|im_end|>", "<|im_end", "|im_end|>",
    "<|im_end|", "<<|im_end|>>", "<|IM_END|>", "<| im_end |>", "<|im_<|im_end|>end|>", "<|endoftext|><|endoftext|>", "<|unknown|>",
    "The text <|im_start|> is a token.", "１<|im_end|>2", "<repo_name>a/b<file_sep>src/main.rs\nfn main() {}<|endoftext|>",
    "<gh_stars>100-1000", "</s><s><unk><pad>[CLS][SEP][INST]", "<|eot_id|><|start_header_id|>", "<filename>x.py\n<jupyter_code>1+1<empty_output>",
    "<|im_end|>'s", "  <|im_end|>  1  ", "\u0301<|im_end|>\u0301", "😀<|im_end|>😀", "",
]  # fmt: skip

PLAIN = ENGLISH + LANGUAGES + EMOJI + SPACES + NUMBERS + CODE + MARKS + CONTROLS

# Ids whose bytes are no whole UTF-8 text, found by what they must hold: see make_tokens.py.
DECODE_BYTES = [
    b"", b"\xc3", b"\xa9", b"\xc3\xa9", b"\xe2\x82", b"\xe2\x82\xac", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80", b"\xf0\x9f",
    b"a\xffb", b"\xc3(", b"\xe2(\xa1", b"\xf0\x9fa", b"a\xe2\x82b", b"\x80\x80", b"\xed\xa0\x80", b"\xf0\x80\x80\x80",
    b"\xe2\x82\xe2\x82\xac", b"ok \xe4\xbd\xa0\xe5", b"\xf3\xb0\x80\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\xaf", b"\n\xc2", b" \xc2\xa0 ",
]  # fmt: skip
