//! Closures, trait objects, collections and panics that are caught, for ever.

use std::collections::BTreeMap;
use std::io::Write;

trait Shape {
    fn area(&self, scale: f64) -> f64;
}

struct Square(f64);
struct Named(String, f64);

impl Shape for Square {
    #[inline(never)]
    fn area(&self, scale: f64) -> f64 {
        self.0 * self.0 * scale
    }
}

impl Shape for Named {
    #[inline(never)]
    fn area(&self, scale: f64) -> f64 {
        format!("{}{}", self.0, scale).len() as f64 * self.1
    }
}

#[inline(never)]
fn descend(depth: u32, shapes: &[Box<dyn Shape>]) -> f64 {
    match depth {
        0 => shapes.iter().map(|shape| shape.area(1.5)).sum(),
        _ => descend(depth - 1, shapes) + f64::from(depth),
    }
}

fn main() {
    println!("ready");
    std::io::stdout().flush().unwrap();
    std::panic::set_hook(Box::new(|_| {}));
    let shapes: Vec<Box<dyn Shape>> = vec![Box::new(Square(2.0)), Box::new(Named("name".into(), 3.0))];
    let mut seen = BTreeMap::new();
    for n in 0u32.. {
        let area = descend(n % 12, &shapes);
        *seen.entry(format!("{area} {}", n % 100)).or_insert(0u64) += 1;
        let caught = std::panic::catch_unwind(|| assert!(n % 2000 != 0, "two thousand"));
        std::hint::black_box((caught.is_err(), seen.len()));
    }
}
