-- The database of an ActiveKG installation after all its migrations, as far as Vecmill meets it:
-- columns, constraints, indexes, the row trigger, and the tables that are written beside `nodes`.
-- Written from what its servers show; pgcrypto is left out, gen_random_uuid() is built in.
CREATE EXTENSION vector;

CREATE TABLE nodes (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  tenant_id text,
  classes text[] NOT NULL DEFAULT '{}',
  props jsonb NOT NULL DEFAULT '{}',
  payload_ref text,
  embedding vector(384),
  metadata jsonb NOT NULL DEFAULT '{}',
  refresh_policy jsonb NOT NULL DEFAULT '{}',
  triggers jsonb NOT NULL DEFAULT '[]',
  version int NOT NULL DEFAULT 1,
  last_refreshed timestamptz,
  drift_score double precision,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  embedding_status text NOT NULL DEFAULT 'queued',
  embedding_error text,
  embedding_attempts int NOT NULL DEFAULT 0,
  embedding_updated_at timestamptz,
  text_search_vector tsvector
);
CREATE INDEX idx_nodes_tenant ON nodes (tenant_id);
CREATE INDEX idx_nodes_classes ON nodes USING gin (classes);
CREATE INDEX idx_nodes_props ON nodes USING gin (props);
CREATE INDEX idx_nodes_metadata ON nodes USING gin (metadata);
CREATE INDEX idx_nodes_triggers ON nodes USING gin (triggers);
CREATE INDEX idx_nodes_last_refreshed ON nodes (last_refreshed);
CREATE INDEX idx_nodes_drift_score ON nodes (drift_score) WHERE drift_score IS NOT NULL;
CREATE INDEX idx_nodes_embedding_status ON nodes (embedding_status);
CREATE INDEX idx_nodes_embedding_updated_at ON nodes (embedding_updated_at);
CREATE INDEX idx_nodes_external_id ON nodes ((props->>'external_id'));
CREATE UNIQUE INDEX idx_nodes_tenant_external_id_unique
  ON nodes (tenant_id, (props->>'external_id')) WHERE props ? 'external_id';
CREATE INDEX idx_nodes_text_search ON nodes USING gin (text_search_vector);
CREATE INDEX idx_nodes_embedding_hnsw ON nodes USING hnsw (embedding vector_cosine_ops);

CREATE FUNCTION fill_text_search_vector() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.text_search_vector :=
    setweight(to_tsvector('english', coalesce(NEW.props->>'title', '')), 'A')
    || setweight(to_tsvector('english',
         coalesce(NEW.props->>'text', NEW.props->>'resume_text', '')), 'B')
    || setweight(to_tsvector('english', coalesce(NEW.metadata::text, '')), 'C');
  RETURN NEW;
END $$;
CREATE TRIGGER nodes_text_search BEFORE INSERT OR UPDATE OF props, metadata ON nodes
  FOR EACH ROW EXECUTE FUNCTION fill_text_search_vector();

CREATE TABLE events (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  node_id uuid,
  type text NOT NULL,
  payload jsonb NOT NULL DEFAULT '{}',
  tenant_id text,
  actor_id text,
  actor_type text,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE embedding_history (
  node_id uuid NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  drift_score double precision,
  embedding_ref text,
  PRIMARY KEY (node_id, created_at)
);
