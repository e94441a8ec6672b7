use serde_json::json;

use super::*;

qapi_enum! {
    enum Colour {
        Red = "red",
        DarkBlue = "dark-blue",
    }
}

qapi_struct! {
    struct Point {
        x_offset: i64,
        y as "y_offset": Option<u32>,
    }
}

qapi_alternate! {
    alternate PointOrStr {
        Name(String),
        Point(Point),
    }
}

qapi_struct! {
    struct Everything {
        points: Vec<PointOrStr>,
        colour: Option<Colour>,
        flag: bool,
        size: Option<u64>,
        share: Option<f64>,
        any: Option<Value>,
        inner: Option<Box<Everything>>,
    }
}

qapi_struct! {
    struct Base {
        id: String,
    }
}

qapi_union! {
    union Shape by "kind": ShapeKind {
        base: Base,
        branches: ShapeBranch {
            Circle(Point) = "circle",
            Coloured(Colours) = "coloured",
        }
    }
}

qapi_struct! {
    struct Colours {
        colours: Vec<Colour>,
    }
}

fn parse<T: QapiType>(value: Value) -> Result<T, String> {
    T::parse(value, &Place::ROOT).map_err(|error| error.desc)
}

/// What is read is written the same.
fn check<T: QapiType>(value: Value) {
    let parsed = parse::<T>(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"));
    assert_eq!(parsed.emit(), Some(value));
}

#[test]
fn what_is_read_is_written_the_same() {
    check::<Point>(json!({"x-offset": -5}));
    check::<Point>(json!({"x-offset": i64::MAX, "y_offset": u32::MAX}));
    check::<Everything>(json!({
        "points": ["name", {"x-offset": 1}], "colour": "dark-blue", "flag": true,
        "size": u64::MAX, "share": 0.5, "any": [null, {"a": 1}],
        "inner": {"points": [], "flag": false},
    }));
    check::<Shape>(json!({"id": "a", "kind": "circle", "x-offset": 3}));
    check::<Shape>(json!({"id": "b", "kind": "coloured", "colours": ["red"]}));
}

fn refuse<T: QapiType + std::fmt::Debug>(value: Value, expect: &str) {
    assert_eq!(parse::<T>(value.clone()).map(|_| ()), Err(expect.to_owned()), "{value}");
}

#[test]
fn what_is_wrong_is_said_in_qemus_words() {
    refuse::<Point>(json!({}), "Parameter 'x-offset' is missing");
    refuse::<Point>(json!({"x-offset": 1, "z": 1}), "Parameter 'z' is unexpected");
    let kind = |what: &str| format!("Invalid parameter type for 'x-offset', expected: {what}");
    for value in [json!("1"), json!(1.5), json!(1.0), json!(null), json!([]), json!(1e30)] {
        refuse::<Point>(json!({"x-offset": value}), &kind("integer"));
    }
    refuse::<Point>(json!({"x-offset": u64::MAX}), "Parameter 'x-offset' expects int64_t");
    let y = |value: Value| json!({"x-offset": 1, "y_offset": value});
    refuse::<Point>(y(json!(-1)), "Parameter 'y_offset' expects uint32_t");
    refuse::<Point>(y(json!(1_u64 << 32)), "Parameter 'y_offset' expects uint32_t");
    let with = |key: &str, value: Value| {
        let mut all = json!({"points": [], "flag": true});
        all[key] = value;
        all
    };
    let expected =
        |at: &str, what: &str| format!("Invalid parameter type for '{at}', expected: {what}");
    refuse::<Everything>(with("flag", json!(1)), &expected("flag", "boolean"));
    refuse::<Everything>(with("points", json!({})), &expected("points", "array"));
    refuse::<Everything>(with("points", json!([7])), &expected("points[0]", "PointOrStr"));
    refuse::<Everything>(
        with("points", json!(["a", {}])),
        "Parameter 'points[1].x-offset' is missing",
    );
    refuse::<Everything>(
        with("points", json!([{"x-offset": 1, "b": 2}])),
        "Parameter 'points[0].b' is unexpected",
    );
    refuse::<Everything>(
        with("colour", json!("green")),
        "Parameter 'colour' does not accept value 'green'",
    );
    refuse::<Everything>(with("colour", json!(1)), &expected("colour", "string"));
    refuse::<Everything>(with("inner", json!([])), &expected("inner", "object"));
    refuse::<Everything>(with("inner", json!({"points": []})), "Parameter 'inner.flag' is missing");
    refuse::<Shape>(json!({"id": "a"}), "Parameter 'kind' is missing");
    refuse::<Shape>(
        json!({"id": "a", "kind": "square"}),
        "Parameter 'kind' does not accept value 'square'",
    );
    refuse::<Shape>(
        json!({"id": "a", "kind": "coloured", "colours": ["red", "blue"]}),
        "Parameter 'colours[1]' does not accept value 'blue'",
    );
    refuse::<Shape>(
        json!({"id": "a", "kind": "coloured", "colours": [], "x-offset": 1}),
        "Parameter 'x-offset' is unexpected",
    );
}

#[test]
fn a_long_word_is_not_repeated_whole() {
    let long = "é".repeat(100_000);
    let error = parse::<Colour>(json!(long)).map(|_| ()).expect_err("no colour");
    assert!(error.len() < 1000 && error.ends_with("…'"), "{error}");
    let mut members = json!({"x-offset": 1});
    members[long] = json!(1);
    let error = parse::<Point>(members).map(|_| ()).expect_err("unexpected");
    assert!(error.len() < 1000, "{error}");
}

#[test]
fn the_schema_says_what_is_read() {
    let mut schema = Schema::default();
    assert_eq!(Everything::schema(&mut schema), "Everything");
    assert_eq!(Shape::schema(&mut schema), "Shape");
    assert_eq!(schema.clashes(), [""; 0]);
    let entries = schema.into_entries();
    let entry = |name: &str| {
        let found = entries.iter().find(|entry| entry["name"] == name);
        found.unwrap_or_else(|| panic!("{name}")).clone()
    };
    let expect = json!({"name": "Point", "meta-type": "object", "members": [
        {"name": "x-offset", "type": "int"},
        {"name": "y_offset", "type": "int", "default": null},
    ]});
    assert_eq!(entry("Point"), expect);
    let expect = json!({"name": "Colour", "meta-type": "enum",
        "members": [{"name": "red"}, {"name": "dark-blue"}], "values": ["red", "dark-blue"]});
    assert_eq!(entry("Colour"), expect);
    let expect = json!({"name": "PointOrStr", "meta-type": "alternate",
        "members": [{"type": "str"}, {"type": "Point"}]});
    assert_eq!(entry("PointOrStr"), expect);
    let expect = json!({"name": "[PointOrStr]", "meta-type": "array",
        "element-type": "PointOrStr"});
    assert_eq!(entry("[PointOrStr]"), expect);
    let expect = json!({"name": "Shape", "meta-type": "object", "tag": "kind",
    "members": [{"name": "kind", "type": "ShapeKind"}, {"name": "id", "type": "str"}],
    "variants": [
        {"case": "circle", "type": "Point"}, {"case": "coloured", "type": "Colours"},
    ]});
    assert_eq!(entry("Shape"), expect);
    let expect = json!({"name": "int", "meta-type": "builtin", "json-type": "int"});
    assert_eq!(entry("int"), expect);
}
