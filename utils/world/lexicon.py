"""The words of the small world: tables that every other module reads, nothing computed but look-ups."""

from typing import NamedTuple


class Country(NamedTuple):
    """One row of the table of countries."""

    name: str
    capital: str
    language: str
    currency: str
    continent: str


class Noun(NamedTuple):
    """A noun with its plural and its French, German and Spanish words (genders: m, f, n)."""

    word: str
    plural: str
    french: str
    french_gender: str
    german: str
    german_gender: str
    spanish: str
    spanish_gender: str


class Verb(NamedTuple):
    """A verb with its past and -ing form and its French, German and Spanish infinitives."""

    word: str
    past: str
    ing: str
    french: str
    german: str
    spanish: str


class Adjective(NamedTuple):
    """An adjective with its opposite, its comparative and its forms abroad (masculine, feminine)."""

    word: str
    opposite: str
    comparative: str
    french: str
    french_f: str
    german: str
    spanish: str
    spanish_f: str


def _rows(kind, table):
    return [kind(*line.split()) for line in table.strip().splitlines()]


COUNTRIES: list[Country] = _rows(
    Country,
    """
France Paris French euro Europe
Germany Berlin German euro Europe
Spain Madrid Spanish euro Europe
Italy Rome Italian euro Europe
Portugal Lisbon Portuguese euro Europe
Greece Athens Greek euro Europe
Austria Vienna German euro Europe
Ireland Dublin English euro Europe
Finland Helsinki Finnish euro Europe
Estonia Tallinn Estonian euro Europe
Latvia Riga Latvian euro Europe
Lithuania Vilnius Lithuanian euro Europe
Slovakia Bratislava Slovak euro Europe
Slovenia Ljubljana Slovenian euro Europe
Croatia Zagreb Croatian euro Europe
Bulgaria Sofia Bulgarian euro Europe
Sweden Stockholm Swedish krona Europe
Norway Oslo Norwegian krone Europe
Denmark Copenhagen Danish krone Europe
Iceland Reykjavik Icelandic krona Europe
Poland Warsaw Polish zloty Europe
Hungary Budapest Hungarian forint Europe
Romania Bucharest Romanian leu Europe
Serbia Belgrade Serbian dinar Europe
Albania Tirana Albanian lek Europe
Ukraine Kyiv Ukrainian hryvnia Europe
Russia Moscow Russian ruble Europe
Turkey Ankara Turkish lira Asia
Egypt Cairo Arabic pound Africa
Morocco Rabat Arabic dirham Africa
Algeria Algiers Arabic dinar Africa
Tunisia Tunis Arabic dinar Africa
Kenya Nairobi Swahili shilling Africa
Tanzania Dodoma Swahili shilling Africa
Ghana Accra English cedi Africa
Nigeria Abuja English naira Africa
Senegal Dakar French franc Africa
Angola Luanda Portuguese kwanza Africa
Mozambique Maputo Portuguese metical Africa
Zambia Lusaka English kwacha Africa
Namibia Windhoek English dollar Africa
Botswana Gaborone English pula Africa
Uganda Kampala English shilling Africa
Somalia Mogadishu Somali shilling Africa
China Beijing Chinese yuan Asia
Japan Tokyo Japanese yen Asia
Thailand Bangkok Thai baht Asia
Vietnam Hanoi Vietnamese dong Asia
Laos Vientiane Lao kip Asia
Indonesia Jakarta Indonesian rupiah Asia
Nepal Kathmandu Nepali rupee Asia
Bangladesh Dhaka Bengali taka Asia
Pakistan Islamabad Urdu rupee Asia
Iran Tehran Persian rial Asia
Iraq Baghdad Arabic dinar Asia
Syria Damascus Arabic pound Asia
Lebanon Beirut Arabic pound Asia
Jordan Amman Arabic dinar Asia
Qatar Doha Arabic riyal Asia
Oman Muscat Arabic rial Asia
Mongolia Ulaanbaatar Mongolian tugrik Asia
Kazakhstan Astana Kazakh tenge Asia
Uzbekistan Tashkent Uzbek som Asia
Georgia Tbilisi Georgian lari Asia
Armenia Yerevan Armenian dram Asia
Canada Ottawa English dollar America
Cuba Havana Spanish peso America
Jamaica Kingston English dollar America
Colombia Bogota Spanish peso America
Venezuela Caracas Spanish bolivar America
Ecuador Quito Spanish dollar America
Peru Lima Spanish sol America
Chile Santiago Spanish peso America
Uruguay Montevideo Spanish peso America
Paraguay Asuncion Spanish guarani America
Brazil Brasilia Portuguese real America
Australia Canberra English dollar Oceania
Fiji Suva English dollar Oceania
""",
)

# word plural | French gender | German gender | Spanish gender
ANIMALS: list[Noun] = _rows(
    Noun,
    """
dog dogs chien m Hund m perro m
cat cats chat m Katze f gato m
horse horses cheval m Pferd n caballo m
bird birds oiseau m Vogel m pájaro m
mouse mice souris f Maus f ratón m
cow cows vache f Kuh f vaca f
wolf wolves loup m Wolf m lobo m
bear bears ours m Bär m oso m
duck ducks canard m Ente f pato m
fox foxes renard m Fuchs m zorro m
goose geese oie f Gans f ganso m
pig pigs cochon m Schwein n cerdo m
frog frogs grenouille f Frosch m rana f
rabbit rabbits lapin m Hase m conejo m
""",
)
THINGS: list[Noun] = _rows(
    Noun,
    """
book books livre m Buch n libro m
key keys clé f Schlüssel m llave f
door doors porte f Tür f puerta f
chair chairs chaise f Stuhl m silla f
box boxes boîte f Kiste f caja f
bottle bottles bouteille f Flasche f botella f
letter letters lettre f Brief m carta f
flower flowers fleur f Blume f flor f
stone stones pierre f Stein m piedra f
knife knives couteau m Messer n cuchillo m
leaf leaves feuille f Blatt n hoja f
boat boats bateau m Boot n barco m
clock clocks horloge f Uhr f reloj m
ring rings anneau m Ring m anillo m
lamp lamps lampe f Lampe f lámpara f
hat hats chapeau m Hut m sombrero m
coat coats manteau m Mantel m abrigo m
shoe shoes chaussure f Schuh m zapato m
spoon spoons cuillère f Löffel m cuchara f
cup cups tasse f Tasse f taza f
bag bags sac m Tasche f bolsa f
ball balls balle f Ball m pelota f
shirt shirts chemise f Hemd n camisa f
window windows fenêtre f Fenster n ventana f
bed beds lit m Bett n cama f
egg eggs œuf m Ei n huevo m
cake cakes gâteau m Kuchen m pastel m
apple apples pomme f Apfel m manzana f
lemon lemons citron m Zitrone f limón m
cherry cherries cerise f Kirsche f cereza f
onion onions oignon m Zwiebel f cebolla f
""",
)
PEOPLE: list[Noun] = _rows(
    Noun,
    """
child children enfant m Kind n niño m
woman women femme f Frau f mujer f
man men homme m Mann m hombre m
king kings roi m König m rey m
queen queens reine f Königin f reina f
friend friends ami m Freund m amigo m
""",
)
NATURE: list[Noun] = _rows(
    Noun,
    """
house houses maison f Haus n casa f
tree trees arbre m Baum m árbol m
star stars étoile f Stern m estrella f
river rivers rivière f Fluss m río m
bridge bridges pont m Brücke f puente m
street streets rue f Straße f calle f
city cities ville f Stadt f ciudad f
island islands île f Insel f isla f
mountain mountains montagne f Berg m montaña f
garden gardens jardin m Garten m jardín m
""",
)
NOUNS: list[Noun] = ANIMALS + THINGS + PEOPLE + NATURE

VERBS: list[Verb] = _rows(
    Verb,
    """
walk walked walking marcher gehen caminar
talk talked talking parler sprechen hablar
eat ate eating manger essen comer
drink drank drinking boire trinken beber
sleep slept sleeping dormir schlafen dormir
run ran running courir laufen correr
sing sang singing chanter singen cantar
dance danced dancing danser tanzen bailar
write wrote writing écrire schreiben escribir
swim swam swimming nager schwimmen nadar
fly flew flying voler fliegen volar
buy bought buying acheter kaufen comprar
sell sold selling vendre verkaufen vender
find found finding trouver finden encontrar
lose lost losing perdre verlieren perder
give gave giving donner geben dar
take took taking prendre nehmen tomar
see saw seeing voir sehen ver
hear heard hearing entendre hören oír
work worked working travailler arbeiten trabajar
play played playing jouer spielen jugar
laugh laughed laughing rire lachen reír
cry cried crying pleurer weinen llorar
cook cooked cooking cuisiner kochen cocinar
wash washed washing laver waschen lavar
open opened opening ouvrir öffnen abrir
close closed closing fermer schließen cerrar
learn learned learning apprendre lernen aprender
teach taught teaching enseigner lehren enseñar
think thought thinking penser denken pensar
dream dreamed dreaming rêver träumen soñar
help helped helping aider helfen ayudar
wait waited waiting attendre warten esperar
build built building construire bauen construir
break broke breaking casser brechen romper
draw drew drawing dessiner zeichnen dibujar
win won winning gagner gewinnen ganar
fall fell falling tomber fallen caer
climb climbed climbing grimper klettern escalar
jump jumped jumping sauter springen saltar
paint painted painting peindre malen pintar
follow followed following suivre folgen seguir
forget forgot forgetting oublier vergessen olvidar
love loved loving aimer lieben amar
begin began beginning commencer beginnen empezar
count counted counting compter zählen contar
push pushed pushing pousser schieben empujar
throw threw throwing lancer werfen lanzar
""",
)

ADJECTIVES: list[Adjective] = _rows(
    Adjective,
    """
hot cold hotter chaud chaude heiß caliente caliente
cold hot colder froid froide kalt frío fría
big small bigger grand grande groß grande grande
small big smaller petit petite klein pequeño pequeña
old young older vieux vieille alt viejo vieja
young old younger jeune jeune jung joven joven
fast slow faster rapide rapide schnell rápido rápida
slow fast slower lent lente langsam lento lenta
long short longer long longue lang largo larga
short long shorter court courte kurz corto corta
high low higher haut haute hoch alto alta
low high lower bas basse niedrig bajo baja
rich poor richer riche riche reich rico rica
poor rich poorer pauvre pauvre arm pobre pobre
strong weak stronger fort forte stark fuerte fuerte
weak strong weaker faible faible schwach débil débil
heavy light heavier lourd lourde schwer pesado pesada
light heavy lighter léger légère leicht ligero ligera
full empty fuller plein pleine voll lleno llena
empty full emptier vide vide leer vacío vacía
clean dirty cleaner propre propre sauber limpio limpia
dirty clean dirtier sale sale schmutzig sucio sucia
hard soft harder dur dure hart duro dura
soft hard softer doux douce weich suave suave
dry wet drier sec sèche trocken seco seca
wet dry wetter mouillé mouillée nass mojado mojada
happy sad happier heureux heureuse glücklich feliz feliz
sad happy sadder triste triste traurig triste triste
good bad better bon bonne gut bueno buena
bad good worse mauvais mauvaise schlecht malo mala
thick thin thicker épais épaisse dick grueso gruesa
thin thick thinner mince mince dünn delgado delgada
dark bright darker sombre sombre dunkel oscuro oscura
bright dark brighter clair claire hell claro clara
wide narrow wider large large breit ancho ancha
narrow wide narrower étroit étroite eng estrecho estrecha
loud quiet louder bruyant bruyante laut ruidoso ruidosa
quiet loud quieter calme calme ruhig tranquilo tranquila
""",
)

NAMES: list[str] = """
Mary John Anna Peter Laura Tom Emma Paul Sara Mark Julia David Clara Simon Alice Henry
Nina Oscar Lucy Daniel Eva Martin Rosa Jack Helen Robert Ruth Victor Jane Arthur Maria Felix
Sophie George Ella Frank Grace Hugo Lena Leo Kate Max Olivia Adam Diana Ben Linda Sam
""".split()

PLACES: list[str] = """
store school park station market library office beach museum hospital restaurant kitchen farm church hotel theater
""".split()

# Small enough to be handed over; all begin with a consonant, so "a" is always right.
GIFTS: list[str] = (
    "book key box bottle letter flower stone knife ring lamp hat coat spoon cup bag ball shirt cake".split()
)

DAYS: list[str] = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS: list[str] = "January February March April May June July August September October November December".split()
COLOURS: list[str] = "red blue green yellow black white brown grey".split()
NUMBER_WORDS: list[str] = "two three four five six seven eight nine ten".split()

# Invented names are two or three of these, the first one capitalised: Mirelo, Zubata, Kefi.
SYLLABLES: list[str] = """
ba be bi bo da de di do fa fe fi ga go ka ke ki ko la le li lo lu ma me mi mo na ne ni no pa pe po ra re ri ro ru
sa se so ta te ti to va ve vi wa za ze zo zu
""".split()

VARIABLES: list[str] = "x y n total count value item index result width height price name size left right".split()
FUNCTIONS: list[str] = "add find count check move load read update merge split scale clean".split()
FUNCTION_TAILS: list[str] = "items values list numbers words lines all point table row".split()
