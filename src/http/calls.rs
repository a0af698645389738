//! The calls that are served, as the OpenAPI document has them: paths, methods, query parameters.

use poem::http::Method;
use poem_openapi::{
    OpenApi,
    registry::{MetaOperation, MetaParamIn},
};

/// A call of a path.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    /// The names of its query parameters.
    pub parameters: Vec<String>,
}

impl From<MetaOperation> for Call {
    fn from(operation: MetaOperation) -> Self {
        let in_query = operation.params.into_iter().filter(|p| p.in_type == MetaParamIn::Query);
        Self {
            method: operation.method,
            parameters: in_query.map(|parameter| parameter.name).collect(),
        }
    }
}

/// A path, with its calls.
#[derive(Debug, Clone)]
pub struct Path {
    /// Such as `/nodes/{id}`.
    pub template: String,
    calls: Vec<Call>,
}

impl Path {
    /// The call of this method; whoever answers GET answers HEAD.
    pub fn call(&self, method: &Method) -> Option<&Call> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.calls.iter().find(|call| call.method == method)
    }

    /// The value of `Allow`.
    pub fn allow(&self) -> String {
        let mut names: Vec<&str> = self.calls.iter().map(|call| call.method.as_str()).collect();
        if names.contains(&"GET") {
            names.push("HEAD");
        }
        names.sort_unstable();
        names.join(", ")
    }

    fn matches(&self, path: &str) -> bool {
        self.template.split('/').count() == path.split('/').count()
            && self
                .template
                .split('/')
                .zip(path.split('/'))
                .all(|(expected, part)| expected.starts_with('{') || expected == part)
    }
}

/// All paths.
#[derive(Debug, Clone)]
pub struct Paths(Vec<Path>);

impl Paths {
    /// The paths of `T` and the pages, which are read with GET.
    pub fn of<T: OpenApi>(pages: &[&str]) -> Self {
        let calls = T::meta().into_iter().flat_map(|api| api.paths).map(|path| {
            (path.path, path.operations.into_iter().map(Call::from).collect::<Vec<_>>())
        });
        let page = || vec![Call { method: Method::GET, parameters: Vec::new() }];
        let pages = pages.iter().map(|path| ((*path).to_owned(), page()));
        let mut paths: Vec<Path> = Vec::new();
        for (template, calls) in calls.chain(pages) {
            match paths.iter_mut().find(|known| known.template == template) {
                Some(known) => known.calls.extend(calls),
                None => paths.push(Path { template, calls }),
            }
        }
        // A literal path wins over a parameter, as it does in the router.
        paths.sort_by_key(|path| path.template.matches('{').count());
        Self(paths)
    }

    /// The path that this one of a request is.
    pub fn find(&self, path: &str) -> Option<&Path> {
        self.0.iter().find(|known| known.matches(path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{admin::AdminApi, nodes::NodesApi};
    use super::*;

    fn paths() -> Paths {
        Paths::of::<(NodesApi, AdminApi)>(&["/"])
    }

    #[test]
    fn paths_are_known_by_their_templates_and_know_their_methods() {
        let paths = paths();
        let find = |path| paths.find(path).map(|path| (path.template.as_str(), path.allow()));
        assert_eq!(find("/nodes"), Some(("/nodes", "GET, HEAD, POST".into())));
        assert_eq!(find("/nodes/batch"), Some(("/nodes/batch", "POST".into())));
        assert_eq!(find("/nodes/42"), Some(("/nodes/{id}", "DELETE, GET, HEAD, PATCH".into())));
        assert_eq!(find("/nodes/42/refresh"), Some(("/nodes/{id}/refresh", "POST".into())));
        assert_eq!(find("/"), Some(("/", "GET, HEAD".into())));
        assert_eq!(find("/nodes/1/2/3"), None);
    }

    #[test]
    fn calls_know_the_parameters_of_their_query_only() {
        let paths = paths();
        let parameters = |method, path| {
            paths.find(path).unwrap().call(&method).map(|call| call.parameters.join(" "))
        };
        let listing = Some("limit offset cursor has_embedding status tenant_id".to_owned());
        assert_eq!(parameters(Method::GET, "/nodes"), listing);
        assert_eq!(parameters(Method::HEAD, "/nodes"), listing);
        assert_eq!(parameters(Method::POST, "/nodes"), Some(String::new()));
        assert_eq!(parameters(Method::DELETE, "/nodes/42"), Some("tenant_id".to_owned()));
        assert_eq!(parameters(Method::PUT, "/nodes/42"), None);
    }
}
