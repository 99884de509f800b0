//! VQA accuracy (Antol et al. 2015; Goyal et al. 2017) as five publications compute it: an answer counts min(matches / 3, 1) among nine of
//! ten people's answers, averaged over who is left out. They differ in how texts are made equal first.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Whose rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// GT-Vision-Lab/VQA: nothing is processed where all people agree.
    Official,
    /// The older official tool: the prediction is processed always; references lose their punctuation where people differ.
    OfficialRefsPunctOnly,
    /// LLaVA's submission: the prediction through the TextVQA processor, then the official tool.
    Llava,
    /// lmms-eval: both sides processed always.
    Lmms,
    /// VLMEvalKit: both sides processed, full stops after digits kept.
    VlmEvalKit,
    /// m4c, TextVQA's own: the EvalAI processor on both sides.
    M4c,
}

const PUNCTUATION: [char; 21] =
    [';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!'];

const NUMBERS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// Words that lost their apostrophe, as the tools restore them (the published table with its oddities).
const CONTRACTIONS: &str = "aint ain't|arent aren't|cant can't|couldve could've|couldnt couldn't|couldn'tve couldn't've|\
couldnt've couldn't've|didnt didn't|doesnt doesn't|dont don't|hadnt hadn't|hadnt've hadn't've|hadn'tve hadn't've|hasnt hasn't|\
havent haven't|hed he'd|hed've he'd've|he'dve he'd've|hes he's|howd how'd|howll how'll|hows how's|Id've I'd've|I'dve I'd've|\
Im I'm|Ive I've|isnt isn't|itd it'd|itd've it'd've|it'dve it'd've|itll it'll|let's let's|maam ma'am|mightnt mightn't|\
mightnt've mightn't've|mightn'tve mightn't've|mightve might've|mustnt mustn't|mustve must've|neednt needn't|notve not've|\
oclock o'clock|oughtnt oughtn't|ow's'at 'ow's'at|'ows'at 'ow's'at|'ow'sat 'ow's'at|shant shan't|shed've she'd've|\
she'dve she'd've|she's she's|shouldve should've|shouldnt shouldn't|shouldnt've shouldn't've|shouldn'tve shouldn't've|\
somebody'd somebodyd|somebodyd've somebody'd've|somebody'dve somebody'd've|somebodyll somebody'll|somebodys somebody's|\
someoned someone'd|someoned've someone'd've|someone'dve someone'd've|someonell someone'll|someones someone's|\
somethingd something'd|somethingd've something'd've|something'dve something'd've|somethingll something'll|thats that's|\
thered there'd|thered've there'd've|there'dve there'd've|therere there're|theres there's|theyd they'd|theyd've they'd've|\
they'dve they'd've|theyll they'll|theyre they're|theyve they've|twas 'twas|wasnt wasn't|wed've we'd've|we'dve we'd've|\
weve we've|werent weren't|whatll what'll|whatre what're|whats what's|whatve what've|whens when's|whered where'd|\
wheres where's|whereve where've|whod who'd|whod've who'd've|who'dve who'd've|wholl who'll|whos who's|whove who've|\
whyll why'll|whyre why're|whys why's|wont won't|wouldve would've|wouldnt wouldn't|wouldnt've wouldn't've|\
wouldn'tve wouldn't've|yall y'all|yall'll y'all'll|y'allll y'all'll|yall'd've y'all'd've|y'alld've y'all'd've|\
y'all'dve y'all'd've|youd you'd|youd've you'd've|you'dve you'd've|youll you'll|youre you're|youve you've";

/// Tabs and line ends become blanks; blanks around go.
pub fn flat(text: &str) -> String {
    text.replace(['\n', '\t'], " ").trim().to_owned()
}

/// Punctuation as the official tool takes it out. The first 32 full stops go that no digit follows (the tool hands a flag over as a
/// count); `after_digits` keeps those that follow a digit (VLMEvalKit).
pub fn punctuation(text: &str, after_digits: bool) -> String {
    let chars: Vec<char> = text.chars().collect();
    let comma_in_number = chars.windows(3).any(|w| w[1] == ',' && w[0].is_numeric() && w[2].is_numeric());
    let mut out = text.to_owned();
    // most answers have none
    for p in PUNCTUATION.into_iter().filter(|p| text.contains(*p)) {
        let beside_blank = text.contains(&format!("{p} ")) || text.contains(&format!(" {p}"));
        out = if beside_blank || comma_in_number { out.replace(p, "") } else { out.replace(p, " ") };
    }
    let chars: Vec<char> = out.chars().collect();
    let mut gone = 0;
    let mut kept = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let followed = chars.get(i + 1).is_some_and(|n| n.is_numeric());
        let follows = after_digits && i > 0 && chars[i - 1].is_numeric();
        if c == '.' && !followed && !follows && gone < 32 {
            gone += 1;
        } else {
            kept.push(c);
        }
    }
    kept
}

/// Lower case, numbers as digits, no articles, apostrophes back in contractions.
pub fn digits_and_articles(text: &str) -> String {
    let number = |w: &str| NUMBERS.iter().find(|n| n.0 == w).map_or_else(|| w.to_owned(), |n| n.1.to_owned());
    static TABLE: OnceLock<HashMap<&str, &str>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        // of two lines for one word the first counts
        CONTRACTIONS.split('|').rev().filter_map(|pair| pair.split_once(' ')).collect()
    });
    let restore = |w: String| table.get(w.as_str()).map_or(w, |full| (*full).to_owned());
    let words = text.to_lowercase();
    let words = words.split_whitespace().map(number).filter(|w| !["a", "an", "the"].contains(&w.as_str()));
    words.map(restore).collect::<Vec<_>>().join(" ")
}

/// Both steps.
pub fn processed(text: &str) -> String {
    digits_and_articles(&punctuation(&flat(text), false))
}

/// The EvalAI processor: lower case, no commas and question marks, `'s` apart, then both steps.
pub fn evalai(text: &str) -> String {
    let text = text.to_lowercase().replace([',', '?'], "").replace("'s", " 's");
    processed(text.trim())
}

fn vlmevalkit(text: &str) -> String {
    digits_and_articles(&punctuation(&flat(text), true))
}

/// The texts that a rule compares: the prediction, and the references.
pub fn prepared(rule: Rule, prediction: &str, answers: &[String]) -> (String, Vec<String>) {
    let differ = answers.iter().map(|a| flat(a)).collect::<std::collections::HashSet<_>>().len() > 1;
    let all = |f: fn(&str) -> String| answers.iter().map(|a| f(a)).collect();
    match rule {
        Rule::Official if differ => (processed(prediction), all(processed)),
        Rule::Official => (flat(prediction), all(flat)),
        Rule::OfficialRefsPunctOnly if differ => (processed(prediction), all(|a| punctuation(a, false))),
        Rule::OfficialRefsPunctOnly => (processed(prediction), answers.to_vec()),
        Rule::Llava if differ => (processed(&evalai(prediction)), all(processed)),
        Rule::Llava => (evalai(prediction), all(flat)),
        Rule::Lmms => (processed(prediction), all(processed)),
        Rule::VlmEvalKit => (vlmevalkit(prediction), all(vlmevalkit)),
        Rule::M4c => (evalai(prediction), all(evalai)),
    }
}

/// Accuracy of a prediction among people's answers, in 0..1.
pub fn accuracy(rule: Rule, prediction: &str, answers: &[String]) -> f64 {
    let (prediction, answers) = prepared(rule, prediction, answers);
    if answers.is_empty() {
        return 0.0;
    }
    let matches = answers.iter().filter(|a| **a == prediction).count();
    let share = |m: usize| (m as f64 / 3.0).min(1.0);
    let n = answers.len();
    (matches as f64 * share(matches.saturating_sub(1)) + (n - matches) as f64 * share(matches)) / n as f64
}
