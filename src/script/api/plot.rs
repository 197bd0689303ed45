//! `save_plot`: a curve of a recipe's own as a picture.

use rhai::{Array, Map, plugin::*};

use crate::{
    config::options::option_table,
    error::{Code, Error, Result},
    recipe::{
        error::ScriptResult,
        options,
        value::{describe, number},
    },
    run::{Axes, Picture, points_svg},
    script::host::{self, Host},
};

/// The largest number of a picture: the difference of two is still one.
const MOST: f64 = 1e300;

/// Pictures.
#[export_module]
pub mod api {
    /// Draws a curve through points as an SVG picture, which any browser shows. It replaces one that dsr has
    /// drawn, and no other file.
    ///
    /// * `points` - arrays of two numbers
    ///
    /// ```rhai
    /// save_plot("runs/squares.svg", [[1, 1], [2, 4], [3, 9]], #{ x: "n", y: "square of n" });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn save_plot(
        ctx: NativeCallContext,
        path: &str,
        points: Array,
        options: Map,
    ) -> ScriptResult<()> {
        Ok(super::save(&*host::of(&ctx)?, path, &points, &options)?)
    }
}

option_table! {
    /// The options of `save_plot`.
    #[derive(Debug)]
    pub(crate) struct PlotOptions {
        /// the name of the lower axis
        #[option(default = "x".to_owned())]
        pub x: String,
        /// the name of the left axis
        #[option(default = "y".to_owned())]
        pub y: String,
        /// whether the lower axis is of powers of ten
        #[option(default = false)]
        pub log_x: bool,
        /// a value of the lower axis at which a line stands
        #[option(optional)]
        pub mark: Option<f64>,
    }
}

fn save(host: &Host, path: &str, points: &Array, options: &Map) -> Result<()> {
    Picture::check_name(path)?;
    let PlotOptions { x, y, log_x, mark } = options::read_table("save_plot", options)?;
    let points: Vec<_> = points.iter().map(point).collect::<Result<_>>()?;
    if points.is_empty() {
        bail!(Code::BadValue, "save_plot has no point to draw");
    }
    let lowest = points.iter().map(|(x, _)| *x).chain(mark).fold(f64::INFINITY, f64::min);
    if log_x && lowest <= 0.0 {
        let message =
            format!("with `log_x` the values of the lower axis are above 0, found {lowest}");
        return Err(Error::new(Code::BadValue, message).option("log_x"));
    }
    if let Some(mark) = mark.filter(|mark| !can_be_drawn(*mark)) {
        let message = format!("`mark` must be a number up to {MOST:e}, found {mark}");
        return Err(Error::new(Code::BadValue, message).option("mark"));
    }
    let place = host.workspace.rights.writable(path)?;
    if host.group()?.rank() > 0 {
        return Ok(());
    }
    let svg = points_svg(&points, Axes { x: &x, y: &y, log_x, mark })?;
    place.create_parents()?;
    svg.write_over_own(&place)
}

fn can_be_drawn(value: f64) -> bool {
    value.abs() <= MOST
}

/// A point of two numbers that can be drawn.
fn point(found: &Dynamic) -> Result<(f64, f64)> {
    let pair = found.read_lock::<Array>().and_then(|pair| match &pair[..] {
        [x, y] => number(x).zip(number(y)),
        _ => None,
    });
    pair.filter(|&(x, y)| can_be_drawn(x) && can_be_drawn(y)).ok_or_else(|| {
        let found = describe(found);
        let message = format!("a point is an array of two numbers up to {MOST:e}, found {found}");
        Error::new(Code::BadValue, message)
    })
}
