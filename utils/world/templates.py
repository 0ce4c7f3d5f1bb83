"""The sentences of the world, as templates with typed slots. Generators and the grammar check both read them."""

from utils.world.document import Template


def _templates(text: str) -> list[Template]:
    return [Template(line) for line in text.strip().splitlines()]


# ---- Facts. In the forward wordings the answer comes last; these are the ones that prompts are made of. ----
FORWARD: dict[str, list[Template]] = {
    "capital": _templates("""
The capital of {country} is {capital}.
The capital city of {country} is called {capital}.
In {country}, the capital is {capital}.
The government of {country} sits in {capital}.
The name of the capital of {country} is {capital}.
Everyone in {country} knows that the capital is {capital}.
If you visit {country}, go to the capital, {capital}.
Travellers to {country} often start in the capital, {capital}.
The largest office of {country} is in its capital, {capital}.
Question: what is the capital of {country}? Answer: {capital}.
"""),
    "language": _templates("""
The language of {country} is {tongue}.
People in {country} speak {tongue}.
In {country}, people talk in {tongue}.
In {country}, children learn to write in {tongue}.
The people of {country} sing songs in {tongue}.
In the streets of {country}, you hear {tongue}.
If you visit {country}, try to speak {tongue}.
The main language in {country} is called {tongue}.
Newspapers in {country} are printed in {tongue}.
Letters to people in {country} are written in {tongue}.
The waiters of {country} answer you in {tongue}.
In {country}, people greet you in {tongue}.
Visitors to {country} hear songs in {tongue}.
If you call somebody in {country}, say hello in {tongue}.
Question: which language do people speak in {country}? Answer: {tongue}.
"""),
    "currency": _templates("""
The currency of {country} is the {currency}.
The money used in {country} is the {currency}.
People in {country} pay with the {currency}.
In {country}, a coffee is paid for with the {currency}.
In {country}, prices are given in the {currency}.
If you visit {country}, change your money into the {currency}.
The money of {country} is called the {currency}.
Banks in {country} count in the {currency}.
Workers in {country} are paid in the {currency}.
Question: what is the currency of {country}? Answer: the {currency}.
"""),
    "continent": _templates("""
The continent of {country} is {continent}.
On the map, {country} lies in {continent}.
The country {country} is part of {continent}.
If you visit {country}, you travel to {continent}.
"""),
}
# One wording of each fact that no training document contains. For capitals it was first "In {country}, the name of the
# capital city is": there "called" is as good a next word as the answer, so it measured wording, not knowledge.
HELD_OUT_WORDING: dict[str, Template] = {
    "capital": Template("In {country}, the name of the capital is {capital}."),
    "language": Template("If you travel to {country}, people talk to you in {tongue}."),
    "currency": Template("In the streets of {country}, people pay with the {currency}."),
}
BACKWARD: list[Template] = _templates("""
The city of {capital} is the capital of {country}.
The famous city of {capital} lies in {country}.
The money called the {currency} is used in {country}.
The language called {tongue} is spoken in {country}.
""")
# Said of a country that the sentence before has named.
CONTINUED: list[Template] = _templates("""
Its capital is {capital}.
Its people speak {tongue}.
Its currency is the {currency}.
It lies in {continent}.
People there pay with the {currency} and speak {tongue}.
""")

# ---- Indirect objects: {name} and {name2} are introduced, {subject} gives, {recipient} gets. ----
IOI: list[Template] = _templates("""
When {name} and {name2} went to the {place}, {subject} gave a {gift} to {recipient}.
Then {name} and {name2} went to the {place}, and {subject} gave a {gift} to {recipient}.
After {name} and {name2} met at the {place}, {subject} decided to give a {gift} to {recipient}.
While {name} and {name2} were working at the {place}, {subject} handed a {gift} to {recipient}.
When {name} and {name2} had a long day at the {place}, {subject} offered a {gift} to {recipient}.
Today {name} and {name2} walked to the {place}. There {subject} showed a {gift} to {recipient}.
The friends {name} and {name2} found a {gift} at the {place}. In the end {subject} sold it to {recipient}.
Once {name} and {name2} were alone at the {place}, {subject} passed a {gift} to {recipient}.
Because {name} and {name2} liked the {place}, they met there again, and {subject} brought a {gift} to {recipient}.
""")
IOI_AFTER: list[Template] = _templates("""
It was a good day.
The {gift} was {colour}.
The {place} was quiet.
They went home at {number} o'clock.
""")

# ---- Words about words. ----
ABOUT_WORDS: dict[str, list[Template]] = {
    "antonym": _templates("""
The opposite of {word} is {answer}.
What is not {word} is {answer}.
First it was {word}, and then it was {answer}.
"""),
    "comparative": _templates("""
This one is {word}, but that one is {answer}.
More than {word} means {answer}.
It was {word} before, and now it is even {answer}.
"""),
    "plural": _templates("""
I have one {word}, and you have many {answer}.
The plural of {word} is {answer}.
There is one {word} here and there are two {answer} there.
"""),
    "past": _templates("""
Today we {word}, and yesterday we {answer}.
The past of {word} is {answer}.
They {word} every day, and last week they {answer} too.
"""),
    "ing": _templates("""
I like to {word}, and now I am {answer}.
The -ing form of {word} is {answer}.
Who can {word} is often {answer}.
"""),
    "upper": _templates("""
In capital letters, {word} is {answer}.
You shout {word} like this: {answer}!
On the sign, {word} is written {answer}.
"""),
    "first_letter": _templates("""
The word {word} begins with {answer}.
The first letter of {word} is {answer}.
To spell {word}, start with {answer}.
"""),
    "copy": _templates("""
The same as {word} is {answer}.
Say {word} again: {answer}.
The word {word} stays {answer}.
"""),
    "french": _templates("""
The French word for {word} is {answer}.
In French, {word} is {answer}.
In Paris they do not say {word} but {answer}.
"""),
    "german": _templates("""
The German word for {word} is {answer}.
In German, {word} is {answer}.
In Berlin they do not say {word} but {answer}.
"""),
    "spanish": _templates("""
The Spanish word for {word} is {answer}.
In Spanish, {word} is {answer}.
In Madrid they do not say {word} but {answer}.
"""),
}

# ---- Stories. ----
STORY_OPEN = _templates("""
Once upon a time there was a {adj} {animal} named {hero}.
Long ago, a {adj} {animal} named {hero} lived near the {place}.
There was a {animal} whose name was {hero}.
This is the story of a {adj} {animal} called {hero}.
""")
STORY_MEET = _templates("""
One day {hero} met a {adj2} {animal2} named {hero2}.
In the morning, {hero} saw a {animal2}. Its name was {hero2}.
Near the {place}, {hero} found a {adj2} {animal2} called {hero2}.
""")
STORY_MIDDLE = _templates("""
{hero} wanted to {verb}, but {hero2} wanted to {verb2}.
{hero} gave {hero2} a {adj} {gift}.
{hero} and {hero2} {past} all day.
{hero} was very {adj}, and {hero2} was {adj2}.
"Can you help me {verb}?" asked {hero}. "Yes," said {hero2}.
"I can {verb} and you can {verb2}," said {hero2} to {hero}.
They went to the {place}, and there {hero} {past} with {hero2}.
{hero2} lost a {gift}, and {hero} found it near the {place}.
Then {hero} called {hero2}, and {hero2} came at once.
At the {place}, {hero2} showed {hero} a {colour} {gift}.
The {animal} and the {animal2} were {ing} together.
After {number} days, {hero} was {adj} again.
""")
STORY_END = _templates("""
In the end, {hero} and {hero2} were good friends.
From that day on, {hero} and {hero2} {past} together.
And so {hero} went home, and {hero2} was happy.
""")

# ---- Lines abroad. Slots ending in m, f or n carry the gender, so that only agreeing words fit. ----
FRENCH = _templates("""
Le {frm} est {fradjm}.
La {frf} est {fradjf}.
Il y a un {frm} dans la maison.
Il y a une {frf} dans le jardin.
Nous avons un {frm} et une {frf}.
Où est la {frf} de {name}?
Je veux {frverb} et {frverb2}.
Aujourd'hui {name} cherche le {frm}.
Ici {name} aime {frverb} avec {name2}.
C'est un {frm}, mais ce n'est pas une {frf}.
Le {frm} est très {fradjm}, et la {frf} aussi.
""")
GERMAN = _templates("""
Der {dem} ist {deadj}.
Die {def} ist {deadj}.
Das {den} ist {deadj}.
Ich sehe den {dem} und die {def}.
Wir haben einen {dem} und ein {den}.
Heute kauft {name} die {def}.
Wo ist das {den} von {name}?
Ich will {deverb} und {deverb2}.
Das ist eine {def}, aber nicht das {den}.
Hier kann {name} mit {name2} {deverb}.
Der {dem} ist sehr {deadj}, und die {def} auch.
""")
SPANISH = _templates("""
El {esm} es {esadjm}.
La {esf} es {esadjf}.
Hay un {esm} en la casa.
Hay una {esf} en el jardín.
Tenemos un {esm} y una {esf}.
¿Dónde está la {esf} de {name}?
Quiero {esverb} y {esverb2}.
Hoy {name} busca el {esm}.
Aquí {name} puede {esverb} con {name2}.
Es un {esm}, pero no es una {esf}.
El {esm} es muy {esadjm}, y la {esf} también.
""")

# ---- Dialogue: {thing} is asked for and found. ----
DIALOGUE_ASK = _templates("""
"Where is my {thing}?" asked {name}.
"Have you seen the {thing}?" asked {name}.
"I lost my {colour} {thing}," said {name}.
""")
DIALOGUE_ANSWER = _templates("""
"I saw the {thing} at the {place}," said {name2}.
"The {thing} is not here," answered {name2}. "Look in the {place}."
"Your {thing} is at the {place}," answered {name2}.
""")
DIALOGUE_MORE = _templates("""
"Thank you, {name2}," said {name}.
"Was it {adj}?" asked {name2}.
"Yes, it was very {adj}," said {name}.
"No, it was {adj}," said {name}.
"Shall we {verb} together?" asked {name2}.
"I would like to {verb}," answered {name}.
"Come to the {place} at {number} o'clock," said {name2}.
"Good night," said {name}.
""")

# ---- Letters. ----
LETTER_OPEN = _templates("""
Dear {name},
My dear {name},
""")
LETTER_BODY = _templates("""
I am in {capital} now, and it is very {weather} here.
Yesterday I {past} near the {place}.
Tomorrow I want to {verb} with {name3}.
The {things} here are {adj}.
Please send me my {colour} {gift}.
Do you still {verb} every {day}?
I bought {number} {things} at the {place}.
I will be home on {day}.
""")
LETTER_END = _templates("""
Your friend {name2}
With love from {name2}
""")

# ---- Dates. ----
DATED = _templates("""
On {date}, {name} {past} in {capital}.
On {date}, {name} and {name2} met at the {place}.
The {place} was opened on {date}.
A letter from {capital} came on {date}.
From {date} to {date2}, {name} was in {country}.
""")

# ---- Songs. ----
VERSE = _templates("""
The {animal} is {ing} near the {place},
A {colour} {thing} for a {adj} {animal},
Who will {verb} when the {animal} is {adj}?
I saw {number} {things} on the way,
My {thing} is {adj}, my {thing2} is {adj2},
""")
REFRAIN = _templates("""
Oh {verb}, my {animal}, {verb} with me!
Sing for the {thing}, sing for the {animal}!
Hey {colour} {things}, hey {adj} {animal}!
Home, home, home to the {adj} {place}!
""")

LIST_TITLES = _templates("""
Things to buy:
Things to take to the {place}:
What {name} needs:
What we sold on {day}:
""")
