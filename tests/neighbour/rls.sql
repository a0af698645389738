-- What the deploy script of an ActiveKG installation always does.
ALTER TABLE nodes ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation_nodes ON nodes
  USING (tenant_id IS NULL OR tenant_id = current_setting('app.current_tenant_id', true));
CREATE POLICY admin_all_nodes ON nodes TO admin_role USING (true) WITH CHECK (true);
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation_events ON events
  USING (tenant_id IS NULL OR tenant_id = current_setting('app.current_tenant_id', true));
CREATE POLICY admin_all_events ON events TO admin_role USING (true) WITH CHECK (true);
ALTER TABLE embedding_history ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation_history ON embedding_history
  USING (EXISTS (SELECT FROM nodes WHERE nodes.id = embedding_history.node_id
    AND (nodes.tenant_id IS NULL
      OR nodes.tenant_id = current_setting('app.current_tenant_id', true))));
CREATE POLICY admin_all_history ON embedding_history TO admin_role USING (true) WITH CHECK (true);
