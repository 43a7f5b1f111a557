//! What a server says to a query, from an orderly answer to none of the kind.

use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::io::{AsyncWriteExt, DuplexStream, WriteHalf};

use crate::records;

/// What may stand behind an RCODE.
const FLAGS: [&str; 5] = ["aa", "ad", "cd", "tc", "no-ra"];

/// A server's reaction, as the lines below an `on` describe it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saying {
    /// Says nothing at all.
    silence: bool,
    /// Ends the connection, behind whatever it says.
    close: bool,
    after: Duration,
    code: u16,
    flags: Vec<String>,
    sections: [Vec<Record>; 3],
    opt: Option<Opt>,
    question: Question,
    wrong_id: bool,
    /// Offset in the header and the lie that is written there.
    lies: Vec<(usize, u16)>,
    trailing: Vec<u8>,
    /// The whole message behind its ID.
    raw: Option<Vec<u8>>,
    frame: Option<u16>,
    cut: Option<usize>,
    drip: Option<Duration>,
    copies: usize,
    strangers: usize,
    before: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Default)]
enum Question {
    #[default]
    Same,
    UpperCase,
    None,
    Other(Name, RecordType),
}

#[derive(Debug, Clone, Default)]
struct Opt {
    version: u8,
    high: u8,
    error: Option<u16>,
}

/// What goes over the wire, in order.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// How long the server thinks.
    pub(crate) after: Duration,
    /// Whole messages.
    pub(crate) messages: Vec<Vec<u8>>,
    /// The length in front of the last one, if it lies.
    pub(crate) frame: Option<u16>,
    /// Of the last message, framing included, only this much is sent.
    pub(crate) cut: Option<usize>,
    /// Between any two octets.
    pub(crate) drip: Option<Duration>,
    /// Whether the connection ends then.
    pub(crate) close: bool,
}

impl Saying {
    /// From the lines of a block.
    pub(crate) fn parse(lines: &[(usize, String)]) -> Result<Self, String> {
        let mut saying = Self::good();
        if lines.is_empty() {
            return Err("says nothing: write `silence` if that is meant".to_owned());
        }
        for (number, line) in lines {
            saying.line(line).map_err(|error| format!("line {number}: {error}"))?;
        }
        Ok(saying)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').map_or((line, ""), |(word, rest)| (word, rest.trim()));
        let number = || rest.parse::<usize>().map_err(|_| format!("`{line}` wants a number"));
        let time = || humantime::parse_duration(rest).map_err(|_| format!("`{line}` wants a time"));
        if ["silence", "close", "wrong-id"].contains(&word) && !rest.is_empty() {
            return Err(format!("`{word}` stands alone"));
        }
        match word {
            "silence" => self.silence = true,
            "close" => self.close = true,
            "after" => self.after = time()?,
            "drip" => self.drip = Some(time()?),
            "cut" => self.cut = Some(number()?),
            "frame" => self.frame = Some(u16::try_from(number()?).map_err(|_| "too long a frame")?),
            "copies" => self.copies = number()?,
            "strangers" => self.strangers = number()?,
            "before" => self.before.push(records::hex(&rest.replace(' ', ""))?),
            "trailing" => self.trailing = records::hex(&rest.replace(' ', ""))?,
            "raw" => self.raw = Some(records::hex(&rest.replace(' ', ""))?),
            "wrong-id" => self.wrong_id = true,
            "question" => self.question = question(rest)?,
            "count" => self.lies.push(lie(rest)?),
            "opt" => self.opt = Some(opt(rest)?),
            "an" => self.sections[0].extend(records::records(rest)?),
            "ns" => self.sections[1].extend(records::records(rest)?),
            "ar" => self.sections[2].extend(records::records(rest)?),
            _ => match code(word) {
                Some(code) => {
                    self.code = code;
                    self.flags = rest.split_whitespace().map(str::to_owned).collect();
                    if let Some(flag) = self.flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
                        return Err(format!("`{flag}`: {}", FLAGS.join(" ")));
                    }
                }
                None => self.sections[0].extend(records::records(line)?),
            },
        }
        Ok(())
    }

    /// NOERROR without records, as good an answer as any.
    pub(crate) fn good() -> Self {
        Self { copies: 1, ..Self::default() }
    }

    /// What is said to this query.
    pub(crate) fn say(&self, query: &Message) -> Told {
        let mut told = Told {
            after: self.after,
            frame: self.frame,
            cut: self.cut,
            drip: self.drip,
            close: self.close,
            ..Told::default()
        };
        if self.silence || (self.close && self.says_nothing()) {
            return told;
        }
        for number in 0..self.strangers {
            let mut stranger = self.bytes(query);
            stranger[0] ^= 0x5a ^ number as u8; // its lower half stays, so it is never the ID asked for
            stranger[1] ^= 0xff;
            told.messages.push(stranger);
        }
        told.messages.extend(self.before.iter().cloned());
        told.messages.extend((0..self.copies).map(|_| self.bytes(query)));
        told
    }

    fn says_nothing(&self) -> bool {
        self.code == 0
            && self.raw.is_none()
            && self.frame.is_none()
            && self.sections.iter().all(Vec::is_empty)
    }

    fn bytes(&self, query: &Message) -> Vec<u8> {
        let mut bytes = match &self.raw {
            Some(raw) => [&query.metadata.id.to_be_bytes()[..], raw].concat(),
            None => self.message(query).to_vec().expect("an answer that fits"),
        };
        if self.wrong_id {
            bytes[0] ^= 0xff;
        }
        for &(at, count) in &self.lies {
            bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        bytes.extend(&self.trailing);
        bytes
    }

    fn message(&self, query: &Message) -> Message {
        let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        let has = |flag: &str| self.flags.iter().any(|known| known == flag);
        let header = &mut message.metadata;
        header.recursion_desired = query.metadata.recursion_desired;
        header.recursion_available = !has("no-ra");
        header.authoritative = has("aa");
        header.authentic_data = has("ad");
        header.checking_disabled = has("cd");
        header.truncation = has("tc");
        header.response_code = ResponseCode::from(0, (self.code & 15) as u8);
        for asked in &query.queries {
            let mut asked = asked.clone();
            match &self.question {
                Question::Same => {}
                Question::None => continue,
                Question::UpperCase => {
                    asked.name = records::name(&asked.name.to_ascii().to_uppercase()).expect("a name")
                }
                Question::Other(name, rtype) => {
                    asked.name = name.clone();
                    asked.query_type = *rtype;
                }
            }
            message.add_query(asked);
        }
        let [answers, authorities, additionals] = self.sections.clone();
        message.insert_answers(answers);
        message.insert_authorities(authorities);
        message.insert_additionals(additionals);
        if let Some(opt) = &self.opt {
            let mut edns = Edns::new();
            edns.set_max_payload(4096).set_version(opt.version).set_rcode_high(opt.high);
            if let Some(error) = opt.error {
                let value = error.to_be_bytes().to_vec();
                edns.options_mut().insert(EdnsOption::Unknown(u16::from(EdnsCode::from(15)), value));
            }
            message.set_edns(edns);
        }
        message
    }
}

/// An RCODE by its mnemonic, or `RCODE` and its number.
pub(crate) fn code(word: &str) -> Option<u16> {
    match word {
        "NOERROR" => Some(0),
        "FORMERR" => Some(1),
        "SERVFAIL" => Some(2),
        "NXDOMAIN" => Some(3),
        "NOTIMP" => Some(4),
        "REFUSED" => Some(5),
        "BADVERS" => Some(16),
        _ => word.strip_prefix("RCODE")?.parse().ok(),
    }
}

fn question(rest: &str) -> Result<Question, String> {
    match rest.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["none"] => Ok(Question::None),
        ["upper"] => Ok(Question::UpperCase),
        [name, rtype] => Ok(Question::Other(records::name(name)?, records::rtype(rtype)?)),
        _ => Err(format!("`question {rest}`: none, upper, or a name and a type")),
    }
}

fn lie(rest: &str) -> Result<(usize, u16), String> {
    let wrong = || format!("`count {rest}`: qd, an, ns or ar and a number");
    let (section, count) = rest.split_once(' ').ok_or_else(wrong)?;
    let index = ["qd", "an", "ns", "ar"].iter().position(|known| *known == section).ok_or_else(wrong)?;
    Ok((4 + 2 * index, count.parse().map_err(|_| wrong())?))
}

fn opt(rest: &str) -> Result<Opt, String> {
    let mut opt = Opt::default();
    for word in rest.split_whitespace() {
        let wrong = || format!("`{word}`: version=N, rcode=N (its high bits) or ede=N");
        let (key, value) = word.split_once('=').ok_or_else(wrong)?;
        let value: u16 = value.parse().map_err(|_| wrong())?;
        match key {
            "version" => opt.version = value as u8,
            "rcode" => opt.high = value as u8,
            "ede" => opt.error = Some(value),
            _ => return Err(wrong()),
        }
    }
    Ok(opt)
}

/// Writes what is said to a stream.
pub(crate) async fn tell(told: Told, writer: &tokio::sync::Mutex<WriteHalf<DuplexStream>>) {
    let mut bytes = Vec::new();
    for (index, message) in told.messages.iter().enumerate() {
        let last = index + 1 == told.messages.len();
        let length = told.frame.filter(|_| last).unwrap_or(message.len() as u16);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&message[..message.len().min(told.cut.filter(|_| last).unwrap_or(usize::MAX))]);
    }
    // An agent that has gone away is no fault of the server's.
    let mut writer = writer.lock().await;
    match told.drip {
        None => {
            let _ = writer.write_all(&bytes).await;
        }
        Some(pause) => {
            for octet in bytes {
                if writer.write_u8(octet).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    if told.close {
        let _ = writer.shutdown().await;
    }
}
