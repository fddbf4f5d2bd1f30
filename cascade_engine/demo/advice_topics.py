"""The advice texts: one block a topic, eight points a topic, each point with its expansion.

The first line of a block is `infinitive | gerund`; every other line is `point: expansion`, the
point in three to five words. `advice.py` parses this text and builds questions from it.
"""

TOPICS = """
save water at home | saving water at home
Fix dripping taps soon: A slow drip wastes many litres every day, and a new washer costs very little.
Take shorter showers: Cut your shower to five minutes. A timer near the door helps you keep to it.
Run full loads only: Wait until the washing machine is full, because a half load uses almost as much water.
Collect rain in barrels: Put a barrel under the gutter and use the rain for your plants.
Turn off the tap: Close the tap while you brush your teeth or wash your hands with soap.
Reuse clean rinse water: Water left from washing vegetables is good enough for the garden.
Check the toilet tank: Put a little colour in the tank. If it shows in the bowl, the valve leaks.
Water plants at dusk: In the cool evening less water is lost to the air before the roots can drink.

save energy at home | saving energy at home
Switch off unused lights: Make it a habit to turn off the light when you leave a room.
Use efficient light bulbs: Modern bulbs give the same light for a small part of the power.
Seal gaps around windows: Cold air comes in through small gaps, and simple tape keeps it out.
Lower the heating slightly: One degree less is hard to feel but easy to see on the bill.
Dry clothes outside: The sun and the wind dry your clothes for nothing.
Unplug chargers after use: Chargers draw a little power even when nothing is connected to them.
Cook with lids on: A covered pot boils sooner and needs less heat.
Close curtains at night: Thick curtains keep the warm air inside while you sleep.

sleep better at night | sleeping better at night
Keep a regular schedule: Go to bed and get up at the same time, even at the weekend.
Avoid screens before bed: Bright screens keep the mind awake. Put the phone away an hour before bed.
Keep the bedroom cool: Most people sleep best in a cool and dark room.
Skip late coffee: Coffee stays in the body for hours, so drink the last cup at noon.
Exercise during the day: A long walk in daylight makes you tired in a good way.
Eat a light dinner: A heavy meal late in the evening keeps the stomach busy.
Read a calm book: A few quiet pages help the mind to slow down.
Write down your worries: Put tomorrow's tasks on paper so that your head can rest.

learn a new language | learning a new language
Practise every single day: Ten minutes each day are worth more than two hours once a week.
Learn common words first: A few hundred frequent words carry most everyday talk.
Listen to simple stories: Stories for children use clear words and repeat them often.
Speak from day one: Say short sentences aloud, even if they are not perfect.
Label things at home: Small notes on the door or the table teach you words without effort.
Find a language partner: Meet someone who speaks the language and wants to learn yours.
Keep a short diary: Write three sentences every evening about your day.
Review old words often: Look at old words again after a day, a week and a month.

save money each month | saving money each month
Write down all spending: You can only cut what you can see, so note every purchase.
Make a simple budget: Decide on the first day of the month what each part of life may cost.
Cook meals at home: A home meal costs far less than the same meal in a restaurant.
Cancel unused services: Look through your bills and stop everything you no longer use.
Shop with a list: A list keeps you away from things that you did not plan to buy.
Buy used items: Furniture and books are often as good as new at half the price.
Set money aside first: Move a fixed sum to your savings as soon as you are paid.
Wait before big purchases: Sleep on it for a week. Many wishes go away by themselves.

start a small garden | starting a small garden
Choose a sunny spot: Most vegetables need at least six hours of sun a day.
Start with easy plants: Beans, lettuce and radishes grow fast and forgive mistakes.
Improve the soil first: Mix in old compost so that the soil holds water and food for the roots.
Water early each morning: In the morning the water reaches the roots before the day gets hot.
Pull weeds while small: Young weeds come out easily, and old ones drop seeds.
Leave space between plants: Crowded plants fight for light and get ill more often.
Mulch around the stems: A layer of straw keeps the soil wet and the weeds down.
Keep a garden notebook: Write down what you planted and when. Next year you will be glad of it.

prepare for an exam | preparing for an exam
Make a study plan: Divide the material by days and leave the last day free for review.
Start early enough: Starting two weeks early turns a mountain into small hills.
Practise with old exams: Old questions show you what the new ones will look like.
Explain it to others: If you can teach a topic to a friend, you have understood it.
Take regular breaks: Rest five minutes after each half hour so that your mind stays fresh.
Write short summaries: One page for each chapter is enough to bring back the rest.
Find a quiet place: A tidy desk in a quiet room makes it easier to think.
Sleep well before it: A rested mind remembers more than a tired one.

stay healthy in winter | staying healthy in winter
Wash your hands often: Soap removes most of the germs that we meet during the day.
Eat plenty of fruit: Oranges, apples and berries give the body what it needs.
Dress in several layers: Layers hold warm air, and you can take one off when you come inside.
Walk in the daylight: Half an hour outside at noon lifts the mood and the sleep.
Drink enough warm tea: Dry winter air takes water from the body, so drink often.
Air the rooms daily: Five minutes with the windows wide open bring in fresh air.
Get enough sleep: The body defends itself best when it is rested.
Keep moving indoors: Stretch, dance or climb the stairs when the weather is bad.

make new friends in town | making new friends in town
Join a local club: A choir or a sports team brings you to the same people every week.
Say hello to neighbours: A short greeting on the stairs is often how a friendship begins.
Volunteer for a cause: People who help together soon talk together.
Take an evening class: In a class you share an interest from the first minute.
Invite people for tea: A simple invitation is easy to accept and easy to return.
Remember names and stories: Ask about what someone told you last time.
Visit the weekly market: Going to the same stalls makes you a known face.
Be patient and kind: Friendship takes time, so do not lose heart after one try.

keep a room tidy | keeping a room tidy
Make the bed first: A made bed takes two minutes and makes the whole room look better.
Give everything a place: Things without a home end up on the floor.
Put things back immediately: It takes less time now than it will take later.
Use boxes and baskets: Small things stay together when they share a box.
Throw away broken things: What you cannot repair only takes up space.
Clean for ten minutes: A short round every evening saves the big cleaning at the weekend.
Own fewer things: Give away what you have not used for a year.
Wipe surfaces each week: A damp cloth on shelves and tables keeps the dust away.

plan a family trip | planning a family trip
Choose the place together: Everyone enjoys the trip more when everyone had a say.
Set a clear budget: Decide early how much the trip may cost and keep a little in reserve.
Book rooms early: The best rooms at fair prices are gone a month before.
Check the weather forecast: The forecast tells you whether to pack hats or rain coats.
Pack light bags: Each person should be able to carry a bag without help.
Plan time for rest: Leave one free afternoon after every busy day.
Bring games and snacks: A long ride feels short with a good game and some fruit.
Copy important papers: Keep a copy of tickets and passports in another bag.

write a good letter | writing a good letter
Know your reader: Think about who will read it and what that person wants to know.
Begin with the purpose: Say in the first lines why you are writing.
Use short sentences: A short sentence is easy to read and hard to misunderstand.
Keep one idea each: Give every paragraph one idea and no more.
Be polite and warm: A friendly tone opens more doors than a clever phrase.
Check names and dates: A wrong name at the top spoils the best letter.
Read it aloud once: Your ear will find the places where the text stumbles.
End with a wish: Close with what you hope will happen next.

start running safely | starting to run safely
Buy good running shoes: Shoes that fit protect your knees and your feet.
Begin with slow walks: Walk briskly for a week before you run the first steps.
Warm up your legs: Five easy minutes prepare the muscles for work.
Run at talking pace: If you cannot talk while running, slow down.
Rest every second day: Muscles grow stronger while they rest.
Drink water afterwards: Replace what you lost before you feel thirsty.
Increase distance slowly: Add a little each week and never double it.
Stop when it hurts: Sharp pain is a warning, so go home and rest.

cook a simple soup | cooking a simple soup
Fry onions in butter: Soft golden onions give the soup its base.
Cut vegetables small: Small pieces cook evenly and fit on the spoon.
Add enough hot stock: Cover the vegetables by the width of two fingers.
Simmer on low heat: A gentle simmer keeps the taste that a hard boil drives away.
Season near the end: Salt gets stronger as water leaves, so add it late.
Blend half of it: Blending one half makes the soup creamy and leaves some bite.
Add fresh herbs last: Parsley loses its colour when it cooks too long.
Serve with warm bread: A slice of warm bread turns the soup into a meal.

care for a puppy | caring for a puppy
Feed at fixed times: Regular meals make a calm dog and an easy house.
Give it a bed: A quiet corner with a soft blanket tells the puppy where it belongs.
Visit the vet early: The vet checks the puppy and gives it the first vaccines.
Train with small treats: Reward good behaviour at once so that the puppy sees the link.
Walk several times daily: A young dog needs to go out after each meal and each sleep.
Offer safe chew toys: A puppy must chew, so give it something better than your shoes.
Meet other friendly dogs: Early meetings teach it how to play and when to stop.
Be patient every day: A puppy forgets quickly, so repeat each lesson with a kind voice.

repair an old bicycle | repairing an old bicycle
Clean the whole frame: Dirt hides cracks and rust, so wash the bicycle first.
Check both brakes: Replace the pads if they are thinner than a coin.
Pump up the tyres: Hard tyres roll easily and get fewer holes.
Oil the chain: Put one drop on every link and wipe off the rest.
Tighten loose screws: Go from the front to the back and test every screw.
Replace worn cables: A new cable makes gears and brakes feel new.
Straighten the wheels: Turn the wheel and watch the gap at the brake to see where it bends.
Test the lights: Ride once around the house in the dark before you trust them.

reduce waste in the kitchen | reducing waste in the kitchen
Plan meals each week: When you know what you will cook, you buy only what you need.
Store food correctly: Keep bread dry, herbs in water and apples away from the sun.
Use leftovers next day: Yesterday's rice becomes today's soup or salad.
Freeze extra portions: A labelled box in the freezer is a meal for a busy day.
Compost the peels: Peels and coffee grounds turn into food for the garden.
Buy loose vegetables: Loose vegetables need no plastic, and you choose the amount.
Check dates before shopping: Look at what must be eaten first and cook that.
Carry cloth bags: A cloth bag lasts for years and replaces hundreds of plastic ones.

give a short talk | giving a short talk
Know your main point: Say in one sentence what the listeners should remember.
Open with a story: A small story wins the room in half a minute.
Use few simple slides: One picture a slide is better than ten lines of text.
Practise it aloud: Speak the whole talk three times before the day.
Look at the listeners: Choose a friendly face on each side of the room.
Speak slowly and clearly: Short pauses give people time to think.
Keep to the time: Stop a minute early, and everybody will thank you.
Invite questions after: A question shows you what was not yet clear.

calm down under stress | calming down under stress
Breathe slowly and deeply: Breathe in for four counts and out for six.
Take a short walk: Ten minutes outside change the view and the mood.
Name the problem: Write down in one line what worries you most.
Do one thing first: Choose the smallest task and finish it before the next.
Talk to a friend: A worry that is shared weighs less.
Drink a warm tea: The warm cup gives your hands and mind something quiet to hold.
Stretch your shoulders: Stress sits in the neck, so roll your shoulders back ten times.
Turn off the news: An evening without news lets your thoughts settle.

care for house plants | caring for house plants
Find the right window: Read where the plant comes from and give it the same light.
Water only when dry: Put a finger in the soil. If it is wet, wait a day.
Use pots with holes: Water must be able to leave or the roots will rot.
Dust the leaves gently: Clean leaves take in more light.
Feed them in spring: A little plant food every two weeks helps the new leaves.
Turn the pots weekly: Turning keeps the plant from leaning to the window.
Watch for small insects: Wash the leaves with soapy water as soon as you see any.
Repot when roots crowd: When roots come out below, choose a pot one size larger.

read more books | reading more books
Always carry a book: Waiting times become reading times when a book is in the bag.
Read before sleeping: Twenty pages each night make more than two books a month.
Choose what you like: You will read more when you enjoy the story.
Put the phone away: Leave the phone in another room while you read.
Join a reading group: A date to talk about a book makes you finish it.
Visit the library often: New books cost nothing there and invite you to try.
Keep a reading list: Write down titles that friends recommend.
Stop reading dull books: Life is short, so put a dull book down without shame.

work well from home | working well from home
Fix your working hours: Start and stop at the same time as you would in an office.
Set up a desk: Work at a table with good light and not from the bed.
Dress for the day: Clean clothes tell your mind that work has begun.
Plan three main tasks: Choose three tasks each morning and do the hardest one first.
Take a lunch break: Eat away from the desk and look out of the window.
Tell others your hours: Family and friends should know when you cannot talk.
Call your colleagues daily: A short call replaces the chat at the coffee machine.
Close the door afterwards: Put the computer away so that the evening is yours.

stay safe on a hike | staying safe on a hike
Tell someone your route: Leave a note with the way and the hour of your return.
Check the weather first: Turn back if dark clouds gather over the hills.
Wear strong boots: Good boots hold the ankle on stones and wet grass.
Carry enough water: Take two litres for each person on a warm day.
Bring a paper map: A map needs no battery and shows the whole valley.
Start early in daylight: An early start leaves time for a rest and a mistake.
Stay on marked paths: A short cut often ends at a cliff or a stream.
Pack a small lamp: If the way takes longer, you can still see it.

teach a child to read | teaching a child to read
Read aloud every evening: A story at bedtime makes books a pleasant thing.
Point at the words: Follow the line with a finger so that the child sees the words go by.
Play with letter sounds: Find three things in the room that begin with the same sound.
Choose books with pictures: Pictures help the child to guess and to check.
Start with short words: Words like cat and sun give quick success.
Praise every small step: A happy child wants to try the next line.
Visit the library together: Let the child choose the books, even the strange ones.
Never hurry or scold: Reading grows at its own speed, and fear slows it down.
"""
